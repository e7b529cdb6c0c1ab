"""Question shapes: the combinations of columns that a shape fits, and how one becomes a question with its SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

from quatrain.tasks.text2sql.conditions import Condition, Draw, fits
from quatrain.tasks.text2sql.material import Place
from quatrain.tasks.text2sql.naming import quote
from quatrain.tasks.text2sql.schema import Column, ForeignKey, Schema, Table

Path = tuple[ForeignKey, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """The tables and columns a question of one shape brings together.

    `parts` say what each column does in it ("average products.price"): a combination is only held out when every part
    occurs in others that are not. `slots` is the shape's own.
    """

    shape: str
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    parts: tuple[str, ...] = field(compare=False)
    slots: Any = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Filled:
    """A combination with values: the SQL, the words for the frame's slots, and the values as text."""

    sql: str
    words: dict[str, str]
    values: tuple[str, ...] = ()


class Shape(Protocol):
    """One shape of question; its frames are `frames.FRAMES[shape.family]`."""

    @property
    def name(self) -> str:
        """The unique name of the shape."""
        ...

    @property
    def family(self) -> str:
        """The family of its frames."""
        ...

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every way in which the shape fits the schema."""
        ...

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """The combination with drawn values, or None when this draw came to nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A condition that a shape asks for: how many joins away its column stands, and its kind."""

    depth: int
    kind: str


def paths(schema: Schema, table: str, depth: int) -> Iterator[Path]:
    """The ways up from a table along `depth` foreign keys, never through the same table twice."""
    if depth == 0:
        yield ()
        return
    for key in schema.parents(table):
        for rest in paths(schema, key.parent, depth - 1):
            if table not in {step.parent for step in rest}:
                yield (key, *rest)


def places(schema: Schema, table: Table, depth: int, kind: str) -> Iterator[Place]:
    """Where a condition of this kind can stand, `depth` joins away from the table."""
    for path in paths(schema, table.name, depth):
        target = schema.table(path[-1].parent) if path else table
        for column in target.columns:
            # A parent's column that the child repeats is asked for without a join.
            repeated = bool(path) and path[-1].parent_column == column.name
            if fits(kind, column) and not repeated:
                yield path, column


def condition_sets(schema: Schema, table: Table, wanted: Sequence[Wanted]) -> Iterator[tuple[tuple[str, Place], ...]]:
    """The ways to fill the wanted conditions with different columns; all joins of a set lie on one way up."""
    for chosen in product(*(list(places(schema, table, want.depth, want.kind)) for want in wanted)):
        longest = max((path for path, _ in chosen), key=len, default=())
        if len({column.full for _, column in chosen}) == len(chosen) and all(
            path == longest[: len(path)] for path, _ in chosen
        ):
            yield tuple((want.kind, place) for want, place in zip(wanted, chosen, strict=True))


def combine(
    shape: str,
    schema: Schema,
    table: Table,
    conditions: Sequence[tuple[str, Place]],
    outputs: Sequence[tuple[str, Column]],
    slots: Any,
    path: Path = (),
) -> Combination:
    """The combination of output columns (each with what is done to it) and conditions on the rows of one table."""
    longest = max([path, *(path for _, (path, _) in conditions)], key=len)
    tables = (table.name, *(key.parent for key in longest))
    parts = [f"{use} {column.full}" for use, column in outputs]
    parts += [f"{kind} {'up ' * len(path)}{column.full}" for kind, (path, column) in conditions]
    parts += [f"join {key.table}.{key.column}" for key in longest]
    columns = [column.full for _, column in outputs] + [column.full for _, (_, column) in conditions]
    joins = [f"{quote(key.table)}.{quote(key.column)}" for key in longest]
    return Combination(shape, tables, tuple(columns + joins), (f"shape {shape}", f"table {table.name}", *parts), slots)


def source(schema: Schema, table: Table, path: Path) -> str:
    """`FROM table JOIN parent USING (key) ...`; ON where the columns differ in name or USING could mean two tables."""
    words = [f"FROM {table.sql}"]
    before: list[Table] = []
    for key in path:
        ambiguous = any(column.name.lower() == key.column.lower() for other in before for column in other.columns)
        plain = key.column == key.parent_column and not ambiguous
        words.append(f"JOIN {quote(key.parent)} USING ({quote(key.column)})" if plain else key.join)
        before.append(schema.table(key.table))
    return " ".join(words)


def longest_path(conditions: Sequence[tuple[str, Place]]) -> Path:
    """The joins that a set of conditions needs."""
    return max((path for _, (path, _) in conditions), key=len, default=())


def name(column: Column, joined: bool) -> str:
    """The column in SQL, with its table where tables are joined."""
    return column.full if joined else column.sql


def identity(table: Table, joined: bool) -> str:
    """The columns that name a row, for a SELECT."""
    return ", ".join(name(column, joined) for column in table.identity)


def noun(table: Table, conditions: Sequence[Condition], glue: str = "and") -> str:
    """The plural noun with its conditions: "products in the category Lamps and with a price above 20"."""
    return " ".join([table.many, f" {glue} ".join(condition.english for condition in conditions)]).rstrip()


def where(conditions: Sequence[Condition], glue: str = "and") -> str:
    """` WHERE ...`, or nothing without conditions."""
    return " WHERE " + f" {glue.upper()} ".join(condition.sql for condition in conditions) if conditions else ""


def values_of(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """All values of the conditions."""
    return tuple(value for condition in conditions for value in condition.values)


def plain_columns(table: Table) -> list[Column]:
    """The columns one may ask for besides the name of a row: no keys, no pictures."""
    return [
        column
        for column in table.columns
        if column.role not in ("other", "key", "reference") and column not in table.identity
    ]
