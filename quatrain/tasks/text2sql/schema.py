"""The schema of a SQLite database, with what questions need.

`introspect` opens any SQLite file read-only and describes its tables: columns with a role, row counts, the columns that
name a row, and the foreign keys, declared or carefully inferred. Views and system tables are ignored, empty tables are
left out with a note.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from quatrain.tasks.text2sql.naming import plural, plural_label, quote, singular

DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([ T]\d\d:\d\d(:\d\d(\.\d+)?)?Z?)?\Z", re.ASCII)
"""A day, or a day with a time, as SQLite's date functions read it."""

#: Roles of a column. `text`, `category` and `boolean` are asked for by value, `number`, `money` and `date` by
#: comparison, `key` and `reference` join tables, `other` (pictures, mixed types) takes no part in questions.
ROLES = ("key", "reference", "text", "category", "boolean", "number", "money", "date", "other")


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `values` is how many different values it has, `low` and `high` the least and the greatest."""

    table: str
    name: str
    role: str
    label: str
    declared: str = ""
    values: int = 0
    nulls: int = 0
    unique: bool = False
    stamp: bool = False
    measure: bool = False
    asked: bool = True
    low: object = None
    high: object = None

    @property
    def labels(self) -> str:
        """The label for several values."""
        return plural_label(self.label)

    @property
    def sql(self) -> str:
        """The name in SQL."""
        return quote(self.name)

    @property
    def full(self) -> str:
        """`table.column` in SQL."""
        return f"{quote(self.table)}.{quote(self.name)}"

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.role in ("number", "money")

    def holds(self, value: object) -> bool:
        """Whether a cell has the type of the column's role. SQLite allows any value in any column."""
        if value is None or isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
            return False
        if self.role == "date":
            return isinstance(value, str) and DATE.match(value) is not None
        if self.role in ("boolean", "key"):
            return isinstance(value, str) == isinstance(self.low, str)
        if self.role in ("text", "category"):
            return isinstance(value, str)
        return not self.is_number or isinstance(value, int | float)

    @property
    def is_choice(self) -> bool:
        """Whether a question may name one of its values."""
        return self.asked and self.role in ("text", "category", "boolean")


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """`table.column` points at `parent.parent_column`; `label` says in English what it points at ("city")."""

    table: str
    column: str
    parent: str
    parent_column: str
    label: str
    declared: bool = True

    @property
    def join(self) -> str:
        """The JOIN clause from the table to its parent."""
        left = f"{quote(self.table)}.{quote(self.column)}"
        return f"JOIN {quote(self.parent)} ON {left} = {quote(self.parent)}.{quote(self.parent_column)}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table with rows. `identity` are the columns by which a person would name a row (its name, else its key)."""

    name: str
    label: str
    columns: tuple[Column, ...]
    rows: int
    identity: tuple[Column, ...]
    key: Column | None

    @property
    def one(self) -> str:
        """The label of one row: "order line"."""
        return singular(self.label)

    @property
    def many(self) -> str:
        """The label of several rows: "order lines"."""
        return plural(self.label)

    @property
    def sql(self) -> str:
        """The name in SQL."""
        return quote(self.name)

    @property
    def title(self) -> Column | None:
        """The text column that identifies a row, if there is one."""
        if len(self.identity) == 1 and self.identity[0].role in ("text", "category"):
            return self.identity[0]
        return None

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True)
class Schema:
    """The tables with rows, the foreign keys between them, and what was left out and why."""

    path: Path
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...]
    notes: tuple[str, ...] = ()
    _by_name: dict[str, Table] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update({table.name: table for table in self.tables})

    def table(self, name: str) -> Table:
        """The table of that name."""
        return self._by_name[name]

    def parents(self, table: str) -> list[ForeignKey]:
        """The foreign keys from a table to other tables."""
        return [key for key in self.foreign_keys if key.table == table and key.parent != table]

    def named(self, key: ForeignKey) -> bool:
        """Whether the label of a foreign key names the parent's row ("city") and not also a column of the child."""
        columns = self.table(key.table).columns
        return all(column.label != key.label or column.role in ("key", "reference") for column in columns)

    def create_statements(self) -> list[str]:
        """A short `CREATE TABLE` per table, with keys and references, as training text."""
        statements = []
        for table in self.tables:
            parts = []
            for column in table.columns:
                words = [column.sql, column.declared.split("(")[0].strip().upper() or "TEXT"]
                if table.key is column:
                    words.append("PRIMARY KEY")
                for key in self.foreign_keys:
                    if (key.table, key.column) == (table.name, column.name):
                        words.append(f"REFERENCES {quote(key.parent)}({quote(key.parent_column)})")
                parts.append(" ".join(words))
            statements.append(f"CREATE TABLE {table.sql} ({', '.join(parts)})")
        return statements
