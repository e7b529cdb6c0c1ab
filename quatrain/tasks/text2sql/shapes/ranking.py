"""Shapes that order rows: sorted lists, the first few, the one with the most, those above the average."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.naming import with_article
from quatrain.tasks.text2sql.schema import Column, Schema, Table
from quatrain.tasks.text2sql.shapes import base
from quatrain.tasks.text2sql.shapes.base import Combination, Filled, Wanted

NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20)
_EXTREMES = {
    ("number", True): ("highest", "largest", "greatest"),
    ("number", False): ("lowest", "smallest"),
    ("date", True): ("latest", "last", "most recent"),
    ("date", False): ("earliest", "first"),
}  # fmt: skip
_DIRECTIONS = {
    ("number", True): ("from highest to lowest", "in descending order", "with the highest first"),
    ("number", False): ("from lowest to highest", "in ascending order", "with the lowest first"),
    ("date", True): ("from latest to earliest", "in descending order", "with the latest first"),
    ("date", False): ("from earliest to latest", "in ascending order", "with the earliest first"),
}  # fmt: skip


def rankable(table: Table) -> list[Column]:
    """The columns by which rows can be ordered. Only numbers and dates: text that looks like a number sorts as text."""
    columns = [column for column in table.columns if column.values > 4]
    return [column for column in columns if column.is_number or column.role == "date"]


def kind(column: Column) -> str:
    """The words that fit: "highest" for numbers, "latest" for dates."""
    return "date" if column.role == "date" else "number"


def descending(draw: Draw, column: Column) -> bool:
    """A direction. Upwards only without gaps: SQLite puts NULL before every value."""
    return column.nulls > 0 or draw.rng.random() < 0.6


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows ordered by a column: all of them (`limit` ""), the first few ("n"), or the first ("1")."""

    name: str
    family: str
    limit: str
    wanted: tuple[Wanted, ...] = ()

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every table whose rows have a name or a key, with every number or date it has."""
        for table in schema.tables:
            if not table.identity:
                continue
            for conditions in base.condition_sets(schema, table, self.wanted):
                compared = {column for _, (path, column) in conditions if not path}
                if any(column.unique or column in table.identity for column in compared):
                    continue
                for column in rankable(table):
                    if column not in compared and column not in table.identity:
                        yield base.combine(
                            self.name, schema, table, conditions, [("rank", column)], (table, column, conditions)
                        )

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT name FROM table [WHERE ...] ORDER BY column DESC [LIMIT n]`."""
        table, column, wanted = combination.slots
        path = base.longest_path(wanted)
        conditions = draw.conditions(table.name, wanted, joined=bool(path)) if wanted else []
        if conditions is None:
            return None
        down = descending(draw, column)
        number = draw.choose(NUMBERS)
        limit = {"": "", "n": f" LIMIT {number}", "1": " LIMIT 1"}[self.limit]
        order = f"ORDER BY {base.name(column, bool(path))} {'DESC' if down else 'ASC'}{limit}"
        select = f"SELECT {base.identity(table, bool(path))} {base.source(draw.material.schema, table, path)}"
        sql = f"{select}{base.where(conditions)} {order}"
        words = {
            "np": base.noun(table, conditions), "many": table.many, "one": table.one, "col": column.label,
            "cols": column.labels, "n": str(number), "most": draw.say(_EXTREMES[kind(column), down]),
            "direction": draw.say(_DIRECTIONS[kind(column), down]),
        }  # fmt: skip
        return Filled(sql, words, base.values_of(conditions))


@dataclass(frozen=True, slots=True)
class AboveAverage:
    """Rows above or below the average of their column."""

    name: str = "above average"
    family: str = "above average"

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every measured column of every table whose rows have a name or a key."""
        for table in schema.tables:
            for column in table.columns if table.identity else ():
                if column.measure and column.values > 4 and column not in table.identity:
                    yield base.combine(self.name, schema, table, (), [("above average", column)], (table, column))

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT name FROM table WHERE column > (SELECT AVG(column) FROM table)`."""
        table, column = combination.slots
        above = draw.rng.random() < 0.6
        inner = f"SELECT AVG({column.sql}) FROM {table.sql}"
        where = f"WHERE {column.sql} {'>' if above else '<'} ({inner})"
        sql = f"SELECT {base.identity(table, False)} FROM {table.sql} {where}"
        words = {
            "many": table.many, "col": column.label, "a_col": with_article(column.label),
            "side": draw.say(("above", "higher than") if above else ("below", "lower than")),
        }  # fmt: skip
        return Filled(sql, words)


RANKINGS = (
    Ranking("sorted", "sorted", ""),
    Ranking("sorted where equal", "sorted", "", (Wanted(0, "equal"),)),
    Ranking("top", "top", "n"),
    Ranking("top where equal", "top where", "n", (Wanted(0, "equal"),)),
    Ranking("joined top", "top where", "n", (Wanted(1, "equal"),)),
    Ranking("most", "most", "1"),
    Ranking("most where equal", "most where", "1", (Wanted(0, "equal"),)),
    Ranking("joined most", "most where", "1", (Wanted(1, "equal"),)),
    AboveAverage(),
)
