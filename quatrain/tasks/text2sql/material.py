"""Rows and values from which questions are made: a sample of every table, its parents' rows, pools of values.

Values drawn together come from one row and its parents, so a question about them has an answer without asking SQLite.
"""

from __future__ import annotations

import random
import sqlite3
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql.naming import quote
from quatrain.tasks.text2sql.opening import ERRORS, connect, explain
from quatrain.tasks.text2sql.schema import Column, ForeignKey, Schema, Table
from quatrain.tasks.text2sql.values import HeldOut, usable, written

ROWS = 3000
POOL = 1500
#: A place in the join: the foreign keys that lead from the first table to the column's table, and the column.
Place = tuple[tuple[ForeignKey, ...], Column]


class Material:
    """Sampled rows of every table (at most `ROWS`), the rows they point at, and the value pools of every column."""

    def __init__(self, schema: Schema, held_out: HeldOut, lexicon: Iterable[str] = ()):
        self.schema = schema
        self.held = held_out
        self.rows: dict[str, list[tuple[Any, ...]]] = {}
        self._position: dict[tuple[str, str], int] = {}
        self._sizes: dict[tuple[str, Place], list[int]] = {}
        self._index: dict[tuple[str, str], dict[Any, tuple[Any, ...]]] = {}
        connection = connect(schema.path)
        try:
            self._load(connection)
        except ERRORS as error:
            raise InputError(f"Cannot read {schema.path}", [explain(schema.path, error)]) from error
        finally:
            connection.close()
        self._hold_out(set(lexicon))
        self.pool: dict[tuple[str, str], list[Any]] = {}
        self.held_pool: dict[tuple[str, str], list[Any]] = {}
        for table in schema.tables:
            for column in table.columns:
                cells = self._cells(column)
                key = (table.name, column.name)
                self.pool[key] = [cell for cell in cells if written(cell) not in held_out]
                self.held_pool[key] = [cell for cell in cells if written(cell) in held_out]

    def _load(self, connection: sqlite3.Connection) -> None:
        for table in self.schema.tables:
            names = self._selected(table)
            step = -(-table.rows // ROWS)
            statement = f"SELECT {names} FROM {table.sql}"
            rows: list[tuple[Any, ...]] = []
            if step > 1:
                try:
                    rows = connection.execute(f"{statement} WHERE rowid % {step} = 0 LIMIT {ROWS}").fetchall()
                except sqlite3.OperationalError:  # WITHOUT ROWID
                    rows = []
            self.rows[table.name] = rows or connection.execute(f"{statement} LIMIT {ROWS}").fetchall()
            for position, column in enumerate(table.columns):
                self._position[table.name, column.name] = position
        for _ in range(2):  # a parent's sample grows by the rows its children need, a grandparent's in the second round
            for key in self.schema.foreign_keys:
                self._follow(connection, key)

    def _selected(self, table: Table) -> str:
        """The columns for a SELECT, without blobs that are not keys."""
        keys = {(key.table, key.column) for key in self.schema.foreign_keys}
        keys |= {(key.parent, key.parent_column) for key in self.schema.foreign_keys}
        return ", ".join(
            column.sql
            if (table.name, column.name) in keys
            else f"CASE typeof({column.sql}) WHEN 'blob' THEN NULL ELSE {column.sql} END"
            for column in table.columns
        )

    def _follow(self, connection: sqlite3.Connection, key: ForeignKey) -> None:
        place = self._position[key.parent, key.parent_column]
        index = self._index.setdefault((key.parent, key.parent_column), {})
        index.update((row[place], row) for row in self.rows[key.parent])
        source = self._position[key.table, key.column]
        values = {row[source] for row in self.rows[key.table]} | {
            row[source]
            for (table, _), known in list(self._index.items())
            if table == key.table
            for row in known.values()
        }
        missing = sorted((value for value in values if value is not None and value not in index), key=str)
        parent = self.schema.table(key.parent)
        names = self._selected(parent)
        for start in range(0, len(missing), 400):
            part = missing[start : start + 400]
            marks = ", ".join("?" * len(part))
            statement = f"SELECT {names} FROM {parent.sql} WHERE {quote(key.parent_column)} IN ({marks})"
            index.update((row[place], row) for row in connection.execute(statement, part))

    def _cells(self, column: Column) -> list[Any]:
        """The usable values of a column, sorted; days for dates; thinned evenly to `POOL`."""
        if column.role in ("other", "reference") and not isinstance(column.low, str):
            return []
        place = self._position[column.table, column.name]
        cells = {row[place] for row in self.rows[column.table]}
        if column.role == "date":
            days = sorted({str(cell)[:10] for cell in cells if column.holds(cell)})
            return days[:: -(-len(days) // POOL)] if days else []
        kinds = (int, float) if column.is_number or column.role in ("key", "boolean") else str
        good = sorted(
            cell
            for cell in cells
            if usable(cell) and column.holds(cell) and (isinstance(cell, kinds) or column.role == "boolean")
        )
        return good[:: -(-len(good) // POOL)] if good else []

    def _hold_out(self, lexicon: set[str]) -> None:
        """Choose the held-out values among columns with many, so that nothing else needs to mention them."""
        open_values: set[str] = set()
        eligible: dict[Column, set[str]] = {}
        for table in self.schema.tables:
            for column in table.columns:
                texts = {written(cell) for cell in self._cells(column)}
                if len(texts) < 6 or column.role in ("boolean", "key", "reference", "other"):
                    open_values |= texts
                elif column.is_number:
                    eligible[column] = {text for text in texts if _rare_number(text)}
                elif column.role == "date":
                    eligible[column] = texts
                elif column.asked:
                    eligible[column] = {
                        text for text in texts if len(text) >= 3 and not text.replace(" ", "").isdigit()
                    }
        open_words = {text.casefold() for text in open_values} | lexicon
        for texts in eligible.values():
            allowed = [text for text in texts - open_values if text.casefold() not in open_words]
            if len(allowed) >= 6:
                self.held.add(self.held.draw(allowed))

    def related(self, row: tuple[Any, ...], path: Sequence[ForeignKey]) -> tuple[Any, ...] | None:
        """The row reached from `row` along foreign keys, or None where one is NULL or dangling."""
        for key in path:
            value = row[self._position[key.table, key.column]]
            found = self._index[key.parent, key.parent_column].get(value)
            if found is None:
                return None
            row = found
        return row

    def cell(self, row: tuple[Any, ...], place: Place) -> Any:
        """The cell at a place, from a row of the first table; None if it has none of the column's type.

        Days for dates.
        """
        path, column = place
        source_row = self.related(row, path) if path else row
        if source_row is None:
            return None
        value = source_row[self._position[column.table, column.name]]
        if not column.holds(value):
            return None
        return value[:10] if column.role == "date" else value

    def draw(self, rng: random.Random, table: str, places: Sequence[Place], held: bool) -> list[Any] | None:
        """Values that stand together in one row of `table` and its parents.

        With `held` at least one of them is a held-out value, otherwise none is. None when no such row was met.
        """
        rows = self.rows[table]
        if held and not any(self.held_pool[column.table, column.name] for _, column in places):
            return None
        for _ in range(400 if held else 40):
            row = rows[int(rng.random() * len(rows))]
            values = [self.cell(row, place) for place in places]
            if all(usable(value) for value in values) and held == any(written(value) in self.held for value in values):
                return values
        return None

    def group_size(self, rng: random.Random, table: str, place: Place) -> int:
        """The number of rows (of the sample) in a random group by the values at a place."""
        key = (table, place)
        sizes = self._sizes.get(key)
        if sizes is None:
            counts = Counter(self.cell(row, place) for row in self.rows[table])
            counts.pop(None, None)
            sizes = self._sizes[key] = sorted(counts.values()) or [1]
        return sizes[int(rng.random() * len(sizes))]

    def around(self, rng: random.Random, column: Column, value: Any, operator: str, held: bool) -> Any:
        """A bound for `column operator bound` that `value` satisfies, or None. Held out or open as asked."""
        key = (column.table, column.name)
        pool = self.held_pool[key] if held else self.pool[key]
        if operator == ">":
            low, high = 0, bisect_left(pool, value)
        elif operator == "<":
            low, high = bisect_right(pool, value), len(pool)
        elif operator == ">=":
            low, high = 0, bisect_right(pool, value)
        else:
            low, high = bisect_left(pool, value), len(pool)
        if low >= high:
            return None
        bound = pool[low + int(rng.random() * (high - low))]
        if not held and not isinstance(bound, str) and rng.random() < 0.4:
            rounded = _rounded(bound)
            fits = {">": value > rounded, "<": value < rounded, ">=": value >= rounded, "<=": value <= rounded}[
                operator
            ]
            if fits and written(rounded) not in self.held:
                return rounded
        return bound


def _rare_number(text: str) -> bool:
    # Questions need small whole numbers, as counts, and years.
    number = float(text)
    return (number > 30 and not (number == int(number) and 1900 <= number <= 2100)) or number != int(number)


def _rounded(value: float) -> int | float:
    whole = int(value)
    digits = len(str(abs(whole)))
    return round(whole, 1 - digits) if digits > 1 else whole
