"""Conditions of a WHERE clause: which columns they fit, the values they take from a row, and their SQL."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

from quatrain.tasks.text2sql.material import Material, Place
from quatrain.tasks.text2sql.phrases import Phrases
from quatrain.tasks.text2sql.schema import Column
from quatrain.tasks.text2sql.values import literal, made_up_day, made_up_number, made_up_text, shown, usable, written

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DIRECT = ("equal", "number", "day")
_SLOT = re.compile(r"\{([vw])\}")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Condition:
    """One filled condition: its SQL, its English and the values in it as text."""

    sql: str
    english: str
    values: tuple[str, ...]


@dataclass(slots=True)
class Draw:
    """Everything a shape needs to fill its slots.

    `held` asks for a held-out value, `made_up` is the share of invented values. What is asked comes from `rng`, how it
    is said from `wording`, so that the same question can be said again.
    """

    rng: random.Random
    material: Material
    phrases: Phrases
    held: bool = False
    made_up: float = 0.0
    wording: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.wording = random.Random(self.rng.random())

    def choose(self, items: Any) -> Any:
        """A random item, uniformly distributed."""
        return items[int(self.rng.random() * len(items))]

    def say(self, words: Any) -> Any:
        """A random phrasing, uniformly distributed."""
        return words[int(self.wording.random() * len(words))]

    def pool(self, column: Column) -> list[Any]:
        """The open values of a column."""
        return self.material.pool[column.table, column.name]

    def conditions(self, table: str, wanted: tuple[tuple[str, Place], ...], *, joined: bool) -> list[Condition] | None:
        """Conditions that one row of `table` and its parents satisfies together; None if no such row was drawn."""
        places = [place for _, place in wanted]
        chosen = -1
        direct = False
        if self.held:
            chosen = int(self.rng.random() * len(wanted))
            kind, place = wanted[chosen]
            if kind in ("year", "month", "contains", "starts", "missing"):
                return None
            direct = kind in _DIRECT
            if not direct and not self.material.held_pool[place[1].table, place[1].name]:
                return None
        drawable = [place for (kind, place) in wanted if kind != "missing"]
        drawn: list[Any] | None = []
        if drawable:
            drawn = self._row(table, drawable, places[chosen] if direct else None)
        if drawn is None:
            return None
        values = iter(drawn)
        built = []
        for number, (kind, place) in enumerate(wanted):
            value = None if kind == "missing" else next(values)
            condition = self._build(kind, place, value, number == chosen, joined)
            if condition is None:
                return None
            built.append(condition)
        return built

    def _row(self, table: str, places: list[Place], held_at: Place | None) -> list[Any] | None:
        if held_at is None:
            return self.material.draw(self.rng, table, places, held=False)
        for _ in range(5):
            values = self.material.draw(self.rng, table, places, held=True)
            if values is not None and written(values[places.index(held_at)]) in self.material.held:
                return values
        return None

    def _build(self, kind: str, place: Place, value: Any, held: bool, joined: bool) -> Condition | None:
        path, column = place
        picked = self._values(kind, column, value, held)
        if picked is None:
            return None
        operator, values = picked
        templates = self.phrases.condition("equal" if kind in _DIRECT else kind, operator, path, column)
        english = self.say(templates)
        words = [self._word(kind, column.role, item) for item in values]
        english = _SLOT.sub(lambda match: words["vw".index(match.group(1))], english)
        return Condition(_sql(kind, operator, column, values, joined), english, tuple(written(item) for item in values))

    def _word(self, kind: str, role: str, value: Any) -> str:
        if kind == "month":
            return f"{MONTHS[int(value[5:7]) - 1]} {value[:4]}"
        if kind in ("contains", "starts"):
            return f'"{value}"' if self.wording.random() < 0.5 else value
        return value if role == "date" else shown(value, self.wording)

    def _values(self, kind: str, column: Column, value: Any, held: bool) -> tuple[str, list[Any]] | None:
        """The operator and the values of a condition that a row with `value` satisfies."""
        rng, around = self.rng, self.material.around
        pool = self.material.held_pool[column.table, column.name] if held else self.pool(column)
        if kind == "missing":
            return "", []
        if kind in ("year", "month"):
            day = self.invented(column, value)
            return "", [day[:4] if kind == "year" else day[:7]]
        if kind == "contains" or kind == "starts":
            text = self.invented(column, value)
            words = _WORD.findall(text)
            if not words or (kind == "starts" and not text.startswith(words[0])):
                return None
            return "", [words[0] if kind == "starts" else self.choose(words)]
        if kind in _DIRECT:
            return "=", [self.invented(column, value)]
        if kind in ("not equal", "one of"):
            if not pool:
                return None
            other = self.choose(pool)
            if other == value:
                return None
            if kind == "not equal":
                return "!=", [self.invented(column, other)]
            pair = [self.invented(column, value), self.invented(column, other)]
            return "IN", pair if rng.random() < 0.5 else pair[::-1]
        if kind == "between":
            low = around(rng, column, value, ">=", held)
            high = around(rng, column, value, "<=", False)
            if low is None or high is None or low == high:
                return None
            low, high = self.invented(column, low), self.invented(column, high)
            return "BETWEEN", sorted((low, high))
        operator = self.choose({"compare": "><", "bound": (">=", "<="), "date": (">", "<", ">=", "<=")}[kind])
        bound = around(rng, column, value, operator, held)
        return None if bound is None else (operator, [self.invented(column, bound)])

    def invented(self, column: Column, value: Any) -> Any:
        """The value itself or, with probability `made_up`, an invented one of its kind."""
        if self.made_up == 0.0 or self.rng.random() >= self.made_up or column.role == "boolean":
            return value
        if column.role == "date":
            return made_up_day(self.rng, value)
        if not isinstance(value, str):
            return made_up_number(self.rng, value)
        if column.role == "category" and column.values <= 6 and self.rng.random() < 0.4:
            return value
        text = made_up_text(self.rng, self.pool(column) or [value])
        return text if usable(text) else value


def fits(kind: str, column: Column) -> bool:
    """Whether the column can have a condition of this kind."""
    if kind == "equal":
        return column.is_choice and column.values > 1
    if kind == "number":
        return (
            column.role == "number"
            and column.values > 4
            and isinstance(column.low, int)
            and isinstance(column.high, int)
        )
    if kind == "day":
        return column.role == "date" and column.values > 3
    if kind in ("not equal", "one of"):
        return column.is_choice and column.role != "boolean" and column.values > 3
    if kind in ("contains", "starts"):
        return column.asked and column.role == "text" and column.values > 3
    if kind in ("compare", "bound"):
        return column.is_number and column.values > 4
    if kind == "between":
        return (column.is_number or column.role == "date") and column.values > 7
    if kind in ("date", "year", "month"):
        return column.role == "date" and column.values > 3
    return kind == "missing" and column.nulls > 0 and column.role not in ("other", "key", "reference")


def _sql(kind: str, operator: str, column: Column, values: list[Any], joined: bool) -> str:
    name = column.full if joined else column.sql
    if kind == "missing":
        return f"{name} IS NULL"
    if kind == "year":
        return f"strftime('%Y', {name}) = '{values[0]}'"
    if kind == "month":
        return f"strftime('%Y-%m', {name}) = '{values[0]}'"
    if kind == "contains":
        return f"{name} LIKE '%{values[0]}%'"
    if kind == "starts":
        return f"{name} LIKE '{values[0]}%'"
    if column.stamp:
        name = f"date({name})"
    if operator == "IN":
        return f"{name} IN ({literal(values[0])}, {literal(values[1])})"
    if operator == "BETWEEN":
        return f"{name} BETWEEN {literal(values[0])} AND {literal(values[1])}"
    return f"{name} {operator} {literal(values[0])}"
