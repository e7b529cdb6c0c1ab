"""Shapes about rows that others point at: customers without orders, products in orders of a kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quatrain.tasks.text2sql.conditions import Draw
from quatrain.tasks.text2sql.naming import quote
from quatrain.tasks.text2sql.schema import Schema
from quatrain.tasks.text2sql.shapes import base
from quatrain.tasks.text2sql.shapes.base import Combination, Filled, Wanted


@dataclass(frozen=True, slots=True)
class Related:
    """The rows of a table that are, or are not, pointed at by rows of another, which may have to meet a condition."""

    name: str
    family: str
    without: bool = False
    count: bool = False
    wanted: tuple[Wanted, ...] = ()

    def combinations(self, schema: Schema) -> Iterator[Combination]:
        """Every foreign key; where one table points twice at another, "its orders" would not be clear, so not these."""
        for key in schema.foreign_keys:
            parent, child = schema.table(key.parent), schema.table(key.table)
            ambiguous = sum((other.table, other.parent) == (key.table, key.parent) for other in schema.foreign_keys) > 1
            if ambiguous or key.parent == key.table or not parent.identity:
                continue
            for conditions in base.condition_sets(schema, child, self.wanted):
                if any(column.name == key.column for _, (_, column) in conditions):
                    continue
                combination = base.combine(self.name, schema, child, conditions, [], (key, conditions), (key,))
                use = "count " if self.count else "list "
                yield Combination(
                    self.name,
                    combination.tables,
                    combination.columns,
                    (*combination.parts, f"{use}parent {key.parent}"),
                    combination.slots,
                )

    def fill(self, combination: Combination, draw: Draw) -> Filled | None:
        """`SELECT name FROM parent WHERE key [NOT] IN (SELECT reference FROM child [WHERE ...])`."""
        key, wanted = combination.slots
        schema = draw.material.schema
        parent, child = schema.table(key.parent), schema.table(key.table)
        conditions = draw.conditions(child.name, wanted, joined=False) if wanted else []
        if conditions is None:
            return None
        inner = f"SELECT {quote(key.column)} FROM {child.sql}{base.where(conditions)}"
        if self.without and child.column(key.column).nulls:
            # NOT IN over a NULL is never true.
            inner += f"{' AND' if conditions else ' WHERE'} {quote(key.column)} IS NOT NULL"
        select = "COUNT(*)" if self.count else base.identity(parent, False)
        inside = "NOT IN" if self.without else "IN"
        sql = f"SELECT {select} FROM {parent.sql} WHERE {quote(key.parent_column)} {inside} ({inner})"
        words = {"many": parent.many, "one": parent.one, "children": base.noun(child, conditions), "child": child.one}
        return Filled(sql, words, base.values_of(conditions))


RELATIONS = (
    Related("without", "without", without=True),
    Related("count without", "count without", without=True, count=True),
    Related("with any", "with any"),
    Related("with any where equal", "with any where", wanted=(Wanted(0, "equal"),)),
    Related("with any where compared", "with any where", wanted=(Wanted(0, "compare"),)),
)
