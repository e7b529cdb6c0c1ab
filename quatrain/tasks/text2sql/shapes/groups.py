"""Shapes that count or aggregate per group: per value of a column, per row of a parent table, per year or month."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.naming import plural
from quatrain.tasks.text2sql.schema import Column, Schema, Table
from quatrain.tasks.text2sql.shapes import base
from quatrain.tasks.text2sql.shapes.base import Combination, Filled, Path, Wanted
from quatrain.tasks.text2sql.shapes.queries import OUTPUTS
from quatrain.tasks.text2sql.shapes.ranking import NUMBERS
from quatrain.tasks.text2sql.values import number_text

_FUNCTIONS = {"count": "COUNT(*)", "average": "AVG({})", "sum": "SUM({})", "maximum": "MAX({})", "minimum": "MIN({})"}


def grouping(schema: Schema, table: Table, depth: int) -> Iterator[tuple[Path, tuple[Column, ...]]]:
    """The columns to group rows by: an own repeated column, or, `depth` joins up, a name or a repeated column.

    Words that mean two things ("per department" over two ways up) mean the nearer, or nothing when both are as near.
    """
    nearer = {group_words(schema, *choice)[0] for near in range(depth) for choice in _groupings(schema, table, near)}
    here = [(choice, group_words(schema, *choice)[0]) for choice in _groupings(schema, table, depth)]
    for choice, words in here:
        if words not in nearer and sum(words == other for _, other in here) == 1:
            yield choice


def _groupings(schema: Schema, table: Table, depth: int) -> Iterator[tuple[Path, tuple[Column, ...]]]:
    for path in base.paths(schema, table.name, depth):
        target = schema.table(path[-1].parent) if path else table
        for column in target.columns:
            named = column in target.identity
            # A column with gaps has a group without a name, which no question means.
            if column.is_choice and 1 < column.values <= 400 and not (column.unique or named or column.nulls):
                yield path, (column,)
        if path and target.identity and schema.named(path[-1]):
            yield path, target.identity


def group_words(schema: Schema, path: Path, columns: tuple[Column, ...]) -> tuple[str, str]:
    """One group and several groups in English: "category", "product brand".

    Not "brand of the product": "the brand of the product with the most orders" is the brand of one product as well.
    """
    if not path:
        return columns[0].label, columns[0].labels
    above = path[-1].label
    if columns == schema.table(path[-1].parent).identity:
        return above, plural(above)
    head = "" if columns[0].label.startswith(above) else above + " "
    return head + columns[0].label, head + columns[0].labels


def _by(schema: Schema, path: Path, columns: tuple[Column, ...]) -> str:
    """The GROUP BY list: the columns shown, but the key for parents whose names repeat."""
    if path:
        target = schema.table(path[-1].parent)
        if columns == target.identity and target.key is not None and not columns[-1].unique:
            return target.key.full
    return ", ".join(base.name(column, bool(path)) for column in columns)


@dataclass(frozen=True, slots=True)
class Group:
    """One line per group: the group and an aggregate of its rows."""

    name: str
    family: str
    function: str
    depth: int = 0
    wanted: tuple[Wanted, ...] = ()

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every grouping of every table with every column to aggregate."""
        for table in schema.tables:
            for path, columns in grouping(schema, table, self.depth):
                for conditions in base.condition_sets(schema, table, self.wanted):
                    for measured in OUTPUTS[self.function].columns(table):
                        used = {*columns, *measured}
                        compared = [column for _, (_, column) in conditions]
                        if len(used) < len(columns) + len(measured) or used & set(compared):
                            continue
                        if any(column.unique or column in table.identity for column in compared):
                            continue
                        outputs = [("per " + "up " * len(path), column) for column in columns]
                        outputs += [(self.function, column) for column in measured]
                        slots = (table, path, columns, measured, conditions)
                        yield base.combine(self.name, schema, table, conditions, outputs, slots, path)

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT group, AVG(column) FROM table [JOIN ...] [WHERE ...] GROUP BY group`."""
        table, path, columns, measured, wanted = combination.slots
        joined = bool(path)
        conditions = draw.conditions(table.name, wanted, joined=joined) if wanted else []
        if conditions is None:
            return None
        schema = draw.material.schema
        names = ", ".join(base.name(column, joined) for column in columns)
        value = _aggregate(self.function, measured, joined)
        sql = (
            f"SELECT {names}, {value} {base.source(schema, table, path)}{base.where(conditions)}"
            f" GROUP BY {_by(schema, path, columns)}"
        )
        one, many = group_words(schema, path, columns)
        words = {"np": base.noun(table, conditions), "group": one, "groups": many}
        if measured:
            words["col"], words["cols"] = measured[0].label, measured[0].labels
        return Filled(sql, words, base.values_of(conditions))


def _aggregate(function: str, measured: tuple[Column, ...], joined: bool) -> str:
    column = base.name(measured[0], joined) if measured else ""
    return _FUNCTIONS[function].replace("{}", column)


@dataclass(frozen=True, slots=True)
class Best:
    """The group, or the few groups, with the most rows or the highest aggregate."""

    name: str
    family: str
    function: str
    depth: int
    limit: str = "1"

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """The groupings of `Group`."""
        return _renamed(
            self.name, "best ", Group(self.name, self.family, self.function, self.depth).combinations(schema)
        )

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT group FROM table [JOIN ...] GROUP BY group ORDER BY COUNT(*) DESC LIMIT 1`."""
        table, path, columns, measured, _ = combination.slots
        schema, joined = draw.material.schema, bool(path)
        down = draw.rng.random() < 0.65
        number = draw.choose(NUMBERS[:8])
        limit = number if self.limit == "n" else 1
        names = ", ".join(base.name(column, joined) for column in columns)
        order = f"{_aggregate(self.function, measured, joined)} {'DESC' if down else 'ASC'} LIMIT {limit}"
        sql = (
            f"SELECT {names} {base.source(schema, table, path)} GROUP BY {_by(schema, path, columns)} ORDER BY {order}"
        )
        one, many = group_words(schema, path, columns)
        words = {"group": one, "groups": many, "many": table.many, "n": str(number)}
        words["most"] = draw.say(("highest", "largest") if down else ("lowest", "smallest"))
        words["number"] = "most" if down else "fewest"
        if measured:
            words["col"], words["cols"] = measured[0].label, measured[0].labels
        return Filled(sql, words)


@dataclass(frozen=True, slots=True)
class Having:
    """The groups with more (or fewer) rows than a number."""

    name: str
    family: str
    depth: int

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """The groupings of `Group`."""
        return _renamed(self.name, "having ", Group(self.name, self.family, "count", self.depth).combinations(schema))

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT group FROM table [JOIN ...] GROUP BY group HAVING COUNT(*) > n`, n near what a group has."""
        table, path, columns, _, _ = combination.slots
        schema, joined = draw.material.schema, bool(path)
        number = draw.material.group_size(draw.rng, table.name, (path, columns[0]))
        operator = draw.choose((">", ">", ">=", "<"))
        number = max(2, number - 1) if operator == ">" else number + 1 if operator == "<" else max(2, number)
        names = ", ".join(base.name(column, joined) for column in columns)
        having = f"HAVING COUNT(*) {operator} {number}"
        sql = f"SELECT {names} {base.source(schema, table, path)} GROUP BY {_by(schema, path, columns)} {having}"
        one, many = group_words(schema, path, columns)
        amount = {">": f"more than {number}", ">=": f"at least {number}", "<": draw.say(("fewer than", "less than"))}
        text = amount[operator] if operator != "<" else f"{amount['<']} {number}"
        return Filled(sql, {"group": one, "groups": many, "many": table.many, "amount": text}, (str(number),))


def _renamed(name: str, use: str, combinations: Iterator[Combination]) -> Iterator[Combination]:
    for old in combinations:
        parts = tuple(use + part if part.startswith("per ") else part for part in old.parts)
        yield Combination(name, old.tables, old.columns, parts, old.slots)


@dataclass(frozen=True, slots=True)
class PerPeriod:
    """One line per year, or per month of a year."""

    name: str
    family: str
    function: str = "count"
    monthly: bool = False

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every date of every table with every column to aggregate."""
        for table in schema.tables:
            for column in table.columns:
                if column.role == "date" and column.values > 7 and str(column.low)[:4] != str(column.high)[:4]:
                    for measured in OUTPUTS[self.function].columns(table):
                        use = "per month" if self.monthly else "per year"
                        outputs = [(use, column), *((self.function, other) for other in measured)]
                        yield base.combine(self.name, schema, table, (), outputs, (table, column, measured))

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT strftime('%Y', date), COUNT(*) FROM table GROUP BY strftime('%Y', date)`."""
        table, column, measured = combination.slots
        period = f"strftime('{'%Y-%m' if self.monthly else '%Y'}', {column.sql})"
        value, where = _aggregate(self.function, measured, False), ""
        words = {"np": table.many, "date": column.label}
        if measured:
            words["col"], words["cols"] = measured[0].label, measured[0].labels
        if self.monthly:
            drawn = draw.material.draw(draw.rng, table.name, (((), column),), held=False)
            if drawn is None:
                return None
            words["year"] = draw.invented(column, drawn[0])[:4]
            where = f" WHERE strftime('%Y', {column.sql}) = '{words['year']}'"
        values = (words["year"],) if self.monthly else ()
        return Filled(f"SELECT {period}, {value} FROM {table.sql}{where} GROUP BY {period}", words, values)


@dataclass(frozen=True, slots=True)
class HavingAverage:
    """The groups whose average of a column lies above or below a number."""

    name: str = "having average"
    family: str = "having average"

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """The groupings of `Group` with an average."""
        return _renamed(self.name, "having ", Group(self.name, self.family, "average").combinations(schema))

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT group FROM table GROUP BY group HAVING AVG(column) > v`, v an open value of the column."""
        table, _, columns, measured, _ = combination.slots
        pool = draw.pool(measured[0])
        if not pool:
            return None
        middle = pool[int(len(pool) * (0.35 + 0.3 * draw.rng.random()))]
        value = draw.invented(measured[0], middle)
        above = draw.rng.random() < 0.6
        having = f"HAVING AVG({measured[0].sql}) {'>' if above else '<'} {number_text(value)}"
        sql = f"SELECT {columns[0].sql} FROM {table.sql} GROUP BY {columns[0].sql} {having}"
        side = draw.say(("above", "over", "higher than") if above else ("below", "under", "lower than"))
        words = {
            "group": columns[0].label, "groups": columns[0].labels, "np": table.many, "many": table.many,
            "col": measured[0].label, "side": side, "v": number_text(value),
        }  # fmt: skip
        return Filled(sql, words, (number_text(value),))


_EQUAL = (Wanted(0, "equal"),)
_YEAR = (Wanted(0, "year"),)
GROUPS = (
    Group("count per group", "count per group", "count"),
    Group("count per group where equal", "count per group", "count", 0, _EQUAL),
    Group("average per group", "average per group", "average"),
    Group("sum per group", "sum per group", "sum"),
    Group("maximum per group", "maximum per group", "maximum"),
    Group("joined count per group", "count per group", "count", 1),
    Group("joined count per group where year", "count per group", "count", 1, _YEAR),
    Group("joined average per group", "average per group", "average", 1),
    Group("joined sum per group", "sum per group", "sum", 1),
    Group("far count per group", "count per group", "count", 2),
    Best("most common", "most rows", "count", 0),
    Best("joined most rows", "most rows", "count", 1),
    Best("joined top rows", "top rows", "count", 1, "n"),
    Best("best average", "best average", "average", 0),
    Best("joined best sum", "best sum", "sum", 1),
    Having("having count", "having count", 0),
    Having("joined having count", "having count", 1),
    HavingAverage(),
    PerPeriod("count per year", "count per year"),
    PerPeriod("sum per year", "sum per year", "sum"),
    PerPeriod("count per month", "count per month", "count", True),
)
