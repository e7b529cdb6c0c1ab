"""Shapes that ask one thing of the rows that meet some conditions: list them, count them, average a column of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.material import Place
from quatrain.tasks.text2sql.schema import Column, Schema, Table
from quatrain.tasks.text2sql.shapes import base
from quatrain.tasks.text2sql.shapes.base import Combination, Filled, Wanted

_NOT_ADDED = frozenset("rating density age percent percentage rate score year average speed temperature".split())


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a query: `columns` gives the choices of output columns, `select` their SQL."""

    columns: Callable[[Table], list[tuple[Column, ...]]]
    select: Callable[[Table, tuple[Column, ...], bool], str]


def _measures(table: Table) -> list[tuple[Column, ...]]:
    return [(column,) for column in table.columns if column.measure and column.values > 3]


def _sums(table: Table) -> list[tuple[Column, ...]]:
    return [columns for columns in _measures(table) if not _NOT_ADDED & set(columns[0].label.split())]


def _numbers(table: Table) -> list[tuple[Column, ...]]:
    return [(column,) for column in table.columns if column.is_number and column.values > 3]


def _dates(table: Table) -> list[tuple[Column, ...]]:
    return [(column,) for column in table.columns if column.role == "date" and column.values > 3]


def _repeated(table: Table) -> list[tuple[Column, ...]]:
    return [
        (column,)
        for column in table.columns
        if column.is_choice and column.role != "boolean" and column.values > 2 and column.values * 1.5 <= table.rows
        and column not in table.identity
    ]  # fmt: skip


def _plain(table: Table) -> list[tuple[Column, ...]]:
    return [(column,) for column in base.plain_columns(table)]


def _pairs(table: Table) -> list[tuple[Column, ...]]:
    columns = base.plain_columns(table)
    if table.title is not None:
        return [(table.title, column) for column in columns]
    return [(first, second) for place, first in enumerate(columns) for second in columns[place + 1 :]]


def _of(function: str) -> Callable[[Table, tuple[Column, ...], bool], str]:
    return lambda table, columns, joined: function.replace("{}", base.name(columns[0], joined))


OUTPUTS: dict[str, Output] = {
    "list": Output(
        lambda table: [()] if table.identity else [], lambda table, columns, joined: base.identity(table, joined)
    ),
    "column": Output(_plain, _of("{}")),
    "two columns": Output(
        _pairs, lambda table, columns, joined: ", ".join(base.name(column, joined) for column in columns)
    ),
    "distinct": Output(_repeated, _of("DISTINCT {}")),
    "count": Output(lambda table: [()], lambda table, columns, joined: "COUNT(*)"),
    "count distinct": Output(_repeated, _of("COUNT(DISTINCT {})")),
    "average": Output(_measures, _of("AVG({})")),
    "sum": Output(_sums, _of("SUM({})")),
    "minimum": Output(_numbers, _of("MIN({})")),
    "maximum": Output(_numbers, _of("MAX({})")),
    "range": Output(_numbers, _of("MIN({}), MAX({})")),
    "first date": Output(_dates, _of("MIN({})")),
    "last date": Output(_dates, _of("MAX({})")),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A shape made of an output and conditions. The family of its frames is the output's."""

    name: str
    family: str
    wanted: tuple[Wanted, ...] = ()
    glue: str = "and"

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every output of every table with every set of conditions on other columns."""
        output = OUTPUTS[self.family]
        for table in schema.tables:
            choices = output.columns(table)
            if not choices:
                continue
            for conditions in base.condition_sets(schema, table, self.wanted):
                compared = {column for _, (_, column) in conditions}
                if self._pointless(table, conditions):
                    continue
                for columns in choices:
                    if not compared & set(columns):
                        outputs = [(self.family, column) for column in columns]
                        yield base.combine(self.name, schema, table, conditions, outputs, (table, columns, conditions))

    def _pointless(self, table: Table, conditions: Sequence[tuple[str, Place]]) -> bool:
        """Whether a condition names the row itself: lookups ask for one row, and these shapes for several."""
        named = {column for kind, (path, column) in conditions if kind in ("equal", "not equal", "one of") and not path}
        return any(column.unique or column in table.identity for column in named)

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT output FROM table [JOIN ...] [WHERE ...]` and its words."""
        table, columns, wanted = combination.slots
        path = base.longest_path(wanted)
        joined = bool(path)
        conditions = draw.conditions(table.name, wanted, joined=joined) if wanted else []
        if conditions is None:
            return None
        select = OUTPUTS[self.family].select(table, columns, joined)
        sql = f"SELECT {select} {base.source(draw.material.schema, table, path)}{base.where(conditions, self.glue)}"
        words = {"np": base.noun(table, conditions, self.glue)}
        for suffix, column in zip(("", "2"), columns, strict=False):
            words["col" + suffix], words["cols" + suffix] = column.label, column.labels
        return Filled(sql, words, base.values_of(conditions))


def _query(name: str, family: str, *wanted: str, glue: str = "and") -> Query:
    """`wanted` are kinds of conditions; each ">" before one stands for a join."""
    return Query(
        name, family, tuple(Wanted(len(text) - len(text.lstrip(">")), text.lstrip(">")) for text in wanted), glue
    )


QUERIES: tuple[Query, ...] = (
    # everything in a table
    _query("list", "list"),
    _query("column", "column"),
    _query("two columns", "two columns"),
    _query("distinct", "distinct"),
    _query("count", "count"),
    _query("count distinct", "count distinct"),
    _query("average", "average"),
    _query("sum", "sum"),
    _query("minimum", "minimum"),
    _query("maximum", "maximum"),
    _query("range", "range"),
    _query("first date", "first date"),
    _query("last date", "last date"),
    # selections
    _query("list where equal", "list", "equal"),
    _query("list where compared", "list", "compare"),
    _query("list where bounded", "list", "bound"),
    _query("list where between", "list", "between"),
    _query("list where number", "list", "number"),
    _query("list where not equal", "list", "not equal"),
    _query("list where one of", "list", "one of"),
    _query("list where contains", "list", "contains"),
    _query("list where starts", "list", "starts"),
    _query("list where missing", "list", "missing"),
    _query("list where day", "list", "day"),
    _query("list where date", "list", "date"),
    _query("list where year", "list", "year"),
    _query("list where month", "list", "month"),
    _query("list where equal and compared", "list", "equal", "compare"),
    _query("list where equal or compared", "list", "equal", "compare", glue="or"),
    _query("column where equal", "column", "equal"),
    _query("column where compared", "column", "compare"),
    _query("column where date", "column", "date"),
    _query("two columns where equal", "two columns", "equal"),
    _query("distinct where compared", "distinct", "compare"),
    # counts
    _query("count where equal", "count", "equal"),
    _query("count where compared", "count", "compare"),
    _query("count where between", "count", "between"),
    _query("count where not equal", "count", "not equal"),
    _query("count where one of", "count", "one of"),
    _query("count where missing", "count", "missing"),
    _query("count where date", "count", "date"),
    _query("count where year", "count", "year"),
    _query("count where month", "count", "month"),
    _query("count where two equal", "count", "equal", "equal"),
    _query("count where equal and year", "count", "equal", "year"),
    # aggregates over some rows
    _query("average where equal", "average", "equal"),
    _query("average where compared", "average", "compare"),
    _query("sum where equal", "sum", "equal"),
    _query("sum where year", "sum", "year"),
    _query("maximum where equal", "maximum", "equal"),
    _query("minimum where equal", "minimum", "equal"),
    # two tables
    _query("joined list", "list", ">equal"),
    _query("joined list where compared", "list", ">compare"),
    _query("joined list where equal and compared", "list", "compare", ">equal"),
    _query("joined column", "column", ">equal"),
    _query("joined count", "count", ">equal"),
    _query("joined count where compared", "count", ">compare"),
    _query("joined count where equal", "count", "equal", ">equal"),
    _query("joined average", "average", ">equal"),
    _query("joined sum", "sum", ">equal"),
    _query("joined count where year", "count", "year", ">equal"),
    # three tables
    _query("far list", "list", ">>equal"),
    _query("far count", "count", ">>equal"),
    _query("far sum", "sum", ">>equal"),
)
