"""Shapes about one row, called by its name or its key, and about rows that share something with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.schema import Column, Schema, Table
from quatrain.tasks.text2sql.shapes import base
from quatrain.tasks.text2sql.shapes.base import Combination, Filled
from quatrain.tasks.text2sql.values import literal, shown, written


def _row_names(table: Table, by: str) -> list[Column]:
    """The column that calls a row: its title (not repeated much, else the answer would be many rows) or its key."""
    if by == "name":
        title = table.title
        return [title] if title is not None and title.values * 1.3 >= table.rows and title.values > 2 else []
    return [table.key] if table.key is not None and isinstance(table.key.low, int) and table.rows > 2 else []


def _draw_one(draw: Draw, column: Column) -> tuple[str, str, tuple[str, ...]] | None:
    """A value of the column as SQL, as English, and as text."""
    drawn = draw.material.draw(draw.rng, column.table, (((), column),), held=draw.held)
    if drawn is None:
        return None
    value = draw.invented(column, drawn[0])
    return literal(value), shown(value, draw.wording), (written(value),)


@dataclass(frozen=True, slots=True)
class Lookup:
    """A column of one row, or of the row it points at: "What is the country of the city of the customer Ann Smith?"."""

    name: str
    family: str
    by: str
    depth: int = 0

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every column of every table whose rows have a name or a key."""
        for table in schema.tables:
            for key in _row_names(table, self.by):
                for path in base.paths(schema, table.name, self.depth):
                    target = schema.table(path[-1].parent) if path else table
                    columns = [column for column in base.plain_columns(target) if column.values > 1]
                    if path and target.title is not None and schema.named(path[-1]):
                        columns.append(target.title)
                    for column in columns:
                        use = "look up " + "up " * len(path)
                        yield base.combine(
                            self.name, schema, table, (), [(use, column), (f"by {self.by}", key)],
                            (table, key, column, path), path,
                        )  # fmt: skip

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT column FROM table [JOIN parent ...] WHERE name = value`."""
        table, key, column, path = combination.slots
        drawn = _draw_one(draw, key)
        if drawn is None:
            return None
        value, english, values = drawn
        joined = bool(path)
        rows = base.source(draw.material.schema, table, path)
        sql = f"SELECT {base.name(column, joined)} {rows} WHERE {base.name(key, joined)} = {value}"
        label = column.label
        if path:
            parent = draw.material.schema.table(path[-1].parent)
            label = path[-1].label if column == parent.title else f"{column.label} of the {path[-1].label}"
        return Filled(sql, {"col": label, "one": table.one, "key": key.label, "v": english}, values)


@dataclass(frozen=True, slots=True)
class SameAs:
    """Rows that have the same value in a column as a row called by its name."""

    name: str = "same as"
    family: str = "same as"

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every repeated column of every table with names."""
        for table in schema.tables:
            for title in _row_names(table, "name"):
                for column in base.plain_columns(table):
                    if column.is_choice and 2 < column.values < table.rows:
                        outputs = [("same", column), ("by name", title)]
                        yield base.combine(self.name, schema, table, (), outputs, (table, title, column))

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT name FROM table WHERE column = (SELECT column FROM table WHERE name = value)`."""
        table, title, column = combination.slots
        drawn = _draw_one(draw, title)
        if drawn is None:
            return None
        value, english, values = drawn
        inner = f"SELECT {column.sql} FROM {table.sql} WHERE {title.sql} = {value}"
        sql = f"SELECT {title.sql} FROM {table.sql} WHERE {column.sql} = ({inner})"
        return Filled(sql, {"many": table.many, "one": table.one, "col": column.label, "v": english}, values)


LOOKUPS = (
    Lookup("lookup", "lookup", "name"),
    Lookup("lookup key", "lookup key", "key"),
    Lookup("joined lookup", "lookup", "name", 1),
    Lookup("joined lookup key", "lookup key", "key", 1),
    SameAs(),
)
