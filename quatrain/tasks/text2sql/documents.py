"""Texts for pretraining: the schema, what the rows say, and values in words and in SQL."""

from __future__ import annotations

import random
from typing import Any

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.schema import Column, Table
from quatrain.tasks.text2sql.values import literal, number_text, usable

#: Shares of the texts that tell the schema and the rows, and of those that only copy values. A small model learns the
#: shapes of SQL long before it learns to copy; drills bring that forward.
TELLING_SHARE = 0.06
DRILL_SHARE = 0.14


class Drill:
    """Invented values of several columns, in words and then in SQL, which a model can predict only by copying."""

    def __init__(self, draw: Draw):
        self._draw = draw
        self._choices = [choice for table in draw.material.schema.tables if len(choice := self._columns(table)) > 1]

    def _columns(self, table: Table) -> list[tuple[str, Column]]:
        schema = self._draw.material.schema
        plain = [column for column in table.columns if column.role == "date" or column.is_number or column.is_choice]
        labelled = [(column.label, column) for column in plain if column.role != "boolean"]
        if table.key is not None and isinstance(table.key.low, int):
            labelled.append((f"{table.one} number", table.key))
        for key in schema.parents(table.name):
            title = schema.table(key.parent).title
            if title is not None and schema.named(key):
                labelled.append((key.label, title))
        return [(label, column) for label, column in labelled if self._draw.pool(column)]

    def text(self) -> str | None:
        """One text, or None when the draw came to nothing."""
        if not self._choices:
            return None
        rng = self._draw.rng
        columns = rng.choice(self._choices)
        chosen = rng.sample(columns, min(len(columns), 2 + int(rng.random() * 3)))
        values = [self._draw.invented(column, self._draw.choose(self._draw.pool(column))) for _, column in chosen]
        joined = len({column.table for _, column in chosen}) > 1
        template = rng.choice(("{} {}", "{} {}", "{} is {}", "{}: {}"))
        words = [template.format(label, _plain(value)) for (label, _), value in zip(chosen, values, strict=True)]
        conditions = [
            f"{column.full if joined else column.sql} = {literal(value)}"
            for (_, column), value in zip(chosen, values, strict=True)
        ]
        if rng.random() < 0.3:
            rng.shuffle(conditions)
        return f"{' and '.join(words)}\nWHERE {' AND '.join(conditions)}"


class Telling:
    """Prose about a database: its schema, lists of values, facts about single rows."""

    def __init__(self, material: Material, rng: random.Random):
        self._material = material
        self._rng = rng
        self._tables = [table for table in material.schema.tables if len(table.columns) > 1]
        self._create = material.schema.create_statements()
        self._columns = [
            column for table in material.schema.tables for column in table.columns
            if column.asked and column.role in ("text", "category")
        ]  # fmt: skip

    def text(self) -> str | None:
        """One text, or None when the draw came to nothing."""
        chance = self._rng.random()
        if chance < 0.12:
            return self._rng.choice(self._create)
        if chance < 0.3 and self._columns:
            return self._list(self._rng.choice(self._columns))
        return self._fact(self._rng.choice(self._tables)) if self._tables else None

    def _list(self, column: Column) -> str | None:
        pool = self._material.pool[column.table, column.name]
        if not pool:
            return None
        some = self._rng.sample(pool, min(len(pool), 3 + int(self._rng.random() * 5)))
        table = self._material.schema.table(column.table)
        return f"Some {column.labels} of the {table.many}: {', '.join(map(_plain, some))}."

    def _fact(self, table: Table) -> str | None:
        row = self._rng.choice(self._material.rows[table.name])
        cells = list(zip(table.columns, row, strict=True))
        told = [
            (column, value)
            for column, value in cells
            if column.role not in ("other", "reference")
            and column not in table.identity
            and column.asked
            and column.holds(value)
            and usable(value)
        ]
        names = [(column, value) for column, value in cells if column in table.identity]
        if not told or not names or not all(column.holds(value) for column, value in names):
            return None
        name = " ".join(_plain(value) for _, value in names)
        chosen = self._rng.sample(told, min(len(told), 1 + int(self._rng.random() * 2)))
        facts = " and ".join(f"the {column.label} {_plain(value)}" for column, value in chosen)
        if self._rng.random() < 0.5:
            return f"The {table.one} {name} has {facts}."
        column, value = chosen[0]
        return f"The {column.label} of the {table.one} {name} is {_plain(value)}."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else number_text(value)
