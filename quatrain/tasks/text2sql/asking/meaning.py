"""Parts of a statement with the ways to say them: rows, conditions, measures. `asker` puts them together."""

from __future__ import annotations

# fmt: off
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.tasks.text2sql.asking import lexicon
from quatrain.tasks.text2sql.conditions import MONTHS
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.naming import PLACES, plural, plural_label, quote, singular, with_article
from quatrain.tasks.text2sql.schema import Column, ForeignKey, Schema, Table
from quatrain.tasks.text2sql.values import literal, number_text

Path = tuple[ForeignKey, ...]
DEPTH = 3
"""The most joins up from the rows in question."""
MONEY = frozenset("price cost amount total value".split())
COUNTS = frozenset("quantity qty units count".split())
SIZES = frozenset("area size surface".split())
KINDS = frozenset("category genre type kind group class department section segment".split())


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition: its SQL without and with table names, and its words.

    `before` are words in front of the noun, `after` behind it, `instead` replace it. `paths` are the joins it needs.
    """

    sql: tuple[str, str]
    after: tuple[str, ...]
    before: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Measure:
    """What is added up or averaged: SQL alone and with table names, and its words."""

    sql: tuple[str, str]
    words: tuple[str, ...]
    columns: tuple[Column, ...]
    paths: tuple[Path, ...] = ()
    revenue: bool = False
    units: bool = False
    stored: bool = False
    """The value of what is in stock."""


def head(label: str) -> str:
    """The last word of a label in the singular."""
    if not label:
        return label
    last, one = label.split()[-1], singular(label).split()[-1]
    return last if one == "record" else one


def looked_up(table: dict[str, Any], label: str) -> Any:
    """The entry for a whole label or for its last word; None where there is neither."""
    one = singular(label)
    for key in (label, one, head(label)):
        if key in table:
            return table[key]
    return None


def scale(column: Column) -> lexicon.Scale:
    """The adjectives for a column's order."""
    if column.role == "date":
        known = looked_up(lexicon.SCALES, column.label)
        if known is not None and "birth" in column.label:
            return known
        return lexicon.DATES
    return looked_up(lexicon.SCALES, column.label) or lexicon.GENERAL


def done_on(column: Column) -> tuple[str, ...]:
    """What happened on a column's date ("placed" for an order date); empty where no word of its label says."""
    return next((lexicon.DONE[word] for word in column.label.split() if word in lexicon.DONE), ())


def paths_up(schema: Schema, table: str, depth: int = DEPTH) -> Iterator[Path]:
    """All ways up from a table, the empty one first, never through a table twice."""
    yield ()
    frontier: list[Path] = [()]
    for _ in range(depth):
        longer = []
        for path in frontier:
            here = path[-1].parent if path else table
            seen = {table, *(key.parent for key in path)}
            for key in schema.parents(here):
                if key.parent not in seen:
                    longer.append((*path, key))
        yield from longer
        frontier = longer


def source(schema: Schema, table: Table, paths: Iterable[Path]) -> str | None:
    """`FROM table JOIN ...` with every join of the paths once; None where a table would be joined twice."""
    words, joined, done = [f"FROM {table.sql}"], [table.name], set()
    for path in sorted(paths, key=len):
        for key in path:
            if (key.table, key.column) in done:
                continue
            if key.parent in joined:
                return None
            before = [schema.table(name) for name in joined if name != key.table]
            ambiguous = any(column.name.lower() == key.column.lower() for other in before for column in other.columns)
            plain = key.column == key.parent_column and not ambiguous
            words.append(f"JOIN {quote(key.parent)} USING ({quote(key.column)})" if plain else key.join)
            joined.append(key.parent)
            done.add((key.table, key.column))
    return " ".join(words)


@dataclass
class Words:
    """Draws words and values for one schema."""

    schema: Schema
    material: Material
    rng: random.Random
    _paths: dict[str, list[Path]] = field(default_factory=dict)
    _scales: dict[str, lexicon.Scale] = field(default_factory=dict)

    def pick(self, items: Sequence[Any]) -> Any:
        """A random item."""
        return items[int(self.rng.random() * len(items))]

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.rng.random() < share

    def paths(self, table: Table) -> list[Path]:
        """The ways up from a table."""
        if table.name not in self._paths:
            self._paths[table.name] = list(paths_up(self.schema, table.name))
        return self._paths[table.name]

    def target(self, table: Table, path: Path) -> Table:
        """The table at the end of a path."""
        return self.schema.table(path[-1].parent) if path else table

    # ---- adjectives

    def scale(self, column: Column) -> lexicon.Scale:
        """The adjectives for a column's order, without those that mean another column of the table.

        The "biggest" state is the one with the largest area where states have an area, else the most populous.
        """
        if column.full not in self._scales:
            found = scale(column)
            taken = {
                word
                for other in self.schema.table(column.table).columns
                if other != column and other.is_number and head(other.label) in SIZES and head(column.label) not in SIZES
                for part in (scale(other).most, scale(other).least, scale(other).more, scale(other).less)
                for word in part
            }
            self._scales[column.full] = lexicon.Scale(
                *(tuple(word for word in part if word not in taken) or part for part in (found.most, found.least, found.more, found.less))
            )
        return self._scales[column.full]

    def special(self, column: Column) -> bool:
        """Whether the column has adjectives of its own, which say the column without naming it."""
        return scale(column) is not lexicon.GENERAL

    # ---- nouns

    def many(self, table: Table) -> str:
        """Several rows of a table."""
        return self.several(table.one)

    def several(self, label: str) -> str:
        """A label, or another word for it, in the plural."""
        others = looked_up(lexicon.NOUNS, label)
        if others and self.chance(0.4):
            return plural(self.pick(others))
        return plural(label)

    def one(self, label: str) -> str:
        """A label, or another word for it."""
        others = looked_up(lexicon.NOUNS, label)
        return self.pick(others) if others and self.chance(0.4) else singular(label)

    def column(self, column: Column, many: bool = False) -> str:
        """The words for a column."""
        label = column.label
        others = looked_up(lexicon.COLUMNS, label)
        if others and self.chance(0.35):
            label = self.pick(others)
        elif self.chance(0.15) and len(label.split()) == 1:
            label = f"{self.schema.table(column.table).one} {label}"
        return plural_label(label) if many else label

    # ---- values

    def row_values(self, table: Table, places: list[tuple[Path, Column]]) -> list[Any] | None:
        """Values that stand together in one row."""
        return self.material.draw(self.rng, table.name, places, held=False)

    # ---- conditions

    def condition(self, table: Table, *, used: frozenset[str] = frozenset(), depth: int = DEPTH) -> Clause | None:
        """A condition on the rows of a table, or None when the draw came to nothing."""
        chance = self.rng.random()
        if chance < 0.54:
            return self._equal(table, used, depth)
        if chance < 0.75:
            return self._number(table, used)
        if chance < 0.9:
            return self._date(table, used, depth)
        if chance < 0.965:
            return self._missing(table, used)
        return self._contains(table, used)

    def _places(self, table: Table, used: frozenset[str], depth: int) -> list[tuple[Path, Column]]:
        places = []
        for path in self.paths(table):
            if len(path) > depth:
                continue
            for column in self.target(table, path).columns:
                # A parent's column that the child repeats is asked for without a join.
                repeated = path and (path[-1].parent_column == column.name or column.label in {own.label for own in table.columns} - {"name", "title"})
                if column.full not in used and not repeated:
                    places.append((path, column))
        return places

    def _choose(self, places: list[tuple[Path, Column]]) -> tuple[Path, Column] | None:
        if not places:
            return None
        weights = [(1.0, 0.55, 0.35, 0.2)[len(path)] for path, _ in places]
        return self.rng.choices(places, weights)[0]

    def _equal(self, table: Table, used: frozenset[str], depth: int) -> Clause | None:
        places = [
            (path, column)
            for path, column in self._places(table, used, depth)
            if column.is_choice and column.values > 1 and (path or column not in table.identity or not column.unique)
        ]
        place = self._choose(places)
        if place is None:
            return None
        return self.equal(table, *place)

    def equal(self, table: Table, path: Path, column: Column, kind: str | None = None) -> Clause | None:
        """A condition on a value of a column: equal, one of two, or not equal."""
        drawn = self.row_values(table, [(path, column)])
        if drawn is None:
            return None
        value = drawn[0]
        chance = self.rng.random()
        kind = kind or ("equal" if chance < 0.7 else "not equal" if chance > 0.84 or column.values < 3 else "one of")
        holder, target = self.holder(table, path, column), self.target(table, path)
        plain = str(value)
        prepositions = list(looked_up(lexicon.PREPOSITIONS, holder) or ("with", "for"))
        named = self.pick((holder, self.column(column)))
        if column.role == "boolean":
            prepositions = []
        after = [f"{word} {{v}}" for word in prepositions] * 2
        after += [f"with {named} {{v}}", f"whose {named} is {{v}}", f"where {named} is {{v}}", f"with the {named} {{v}}",
                  f"{named} {{v}}", f"that have {named} {{v}}", f"of {named} {{v}}"]
        if column == target.title and path:
            after += ["of {v}", "for {v}", "{v}", f"in the {holder} {{v}}", f"of the {holder} {{v}}", "from {v}"]
        if column.values <= 12 and not path:
            after += ["that are {v}", "which are {v}", "that were {v}", "who are {v}", "{v}", "which have been {v}",
                      "that got {v}", "that have been {v}", "that are still {v}", "being {v}", "marked as {v}", "which were {v}"]
        elif len(path) >= 1 and head(holder) in PLACES and len(path) > 1:
            above = path[0].label
            after += [f"from {plural(above)} in {{v}}", f"of {plural(above)} from {{v}}", f"by {plural(above)} in {{v}}"]
        if len(path) > 1 or (path and column != target.title):
            above = path[0].label if len(path) > 1 else path[-1].label
            after += [f"of {{v}} {plural(above)}", f"by {{v}} {plural(above)}", f"from {{v}} {plural(above)}"]
        before = ("{v}",) * (3 if column.values <= 60 else 1)
        instead: tuple[str, ...] = ()
        if head(holder) in KINDS and path and column == target.title:
            instead = (plain.lower(),)
        full, own = column.full, column.sql
        if kind == "equal":
            test = f"= {literal(value)}"
        elif kind == "one of":
            other = self.pick(self.material.pool[column.table, column.name] or [value])
            if other == value:
                return None
            pair = [value, other]
            glue = self.pick((" or ", " and ", " or ", ", ", " and/or ", " as well as ", " or "))
            plain, test = f"{pair[0]}{glue}{pair[1]}", f"IN ({literal(pair[0])}, {literal(pair[1])})"
            plain = self.pick((plain, plain, plain, f"either {pair[0]} or {pair[1]}", f"{pair[0]} or {self.pick(prepositions or ('else',))} {pair[1]}", f"both {pair[0]} and {pair[1]}"))
            before, instead = ("{v}",), ()
        else:
            test = f"!= {literal(value)}"
            bare = self.pick(prepositions) if prepositions else "with"
            after = [f"not {bare} {{v}}", f"that are not {bare} {{v}}", f"whose {named} is not {{v}}", "except {v}",
                     "other than {v}", "which are not {v}", "that aren't {v}", "excluding {v}", "without {v}",
                     "outside of {v}" if head(holder) in PLACES else "apart from {v}", f"with {named} not {{v}}",
                     "not {v}", "that were not {v}", f"with a {named} other than {{v}}", "that have not been {v}", "except those {v}",
                     f"except the ones {bare} {{v}}", "except {v} ones", f"which do not come {bare} {{v}}", "but not {v}", f"not {bare} {{v}}",
                     "but {v}", f"with any {named} but {{v}}", "outside {v}" if head(holder) in PLACES else "besides {v}", "that are not yet {v}", "not yet {v}",
                     f"which are not {bare} {{v}}", "that are anything but {v}", "leaving out {v}", "ignoring {v}"]
            before, instead = ("not {v}", "non {v}", "non-{v}", "non {v}"), ()
        tests = (f"{own} {test}", f"{full} {test}")
        title = table.title
        if kind == "not equal" and not path and title is not None and title != column and title.values * 1.3 < table.rows:
            # A row each for what a thing has several of: "rivers that do not cross Texas" have no such row.
            inner = f"SELECT {title.sql} FROM {table.sql} WHERE {own} = {literal(value)}"
            tests = (f"{title.sql} NOT IN ({inner})", f"{title.full} NOT IN ({inner})")
            verbs = [word.removeprefix("that ") for word in prepositions if word.startswith("that ")]
            after += [f"that do not {verb} {{v}}" for verb in verbs] + [f"which don't {verb} {{v}}" for verb in verbs]
        return Clause(
            tests,
            tuple(text.replace("{v}", plain) for text in after),
            tuple(text.replace("{v}", plain) for text in before),
            instead,
            (path,) if path else (),
            frozenset([full]),
        )

    def holder(self, table: Table, path: Path, column: Column) -> str:
        """What a value is of: the key's label for the name of a parent, else the column's."""
        target = self.target(table, path)
        if path and column == target.title:
            return path[-1].label
        return column.label

    def _number(self, table: Table, used: frozenset[str]) -> Clause | None:
        columns = [c for c in table.columns if c.is_number and c.values > 3 and c.full not in used]
        if not columns:
            return None
        column = self.pick([*columns, *(c for c in columns if head(c.label) in ("stock", "inventory") and c.low == 0)])
        stock = head(column.label) in ("stock", "inventory")
        if column.low == 0 and self.chance(0.7 if stock else 0.25 if column.role == "money" else 0.12):
            return self._none_or_some(column, stock)
        drawn = self.row_values(table, [((), column)])
        if drawn is None:
            return None
        value = drawn[0]
        if self.chance(0.7) and abs(value) > 10:
            digits = len(str(abs(int(value))))
            value = int(round(value, 1 - digits)) or value
        text, name = number_text(value), self.column(column)
        adjectives = self.scale(column)
        if self.chance(0.12):
            other = self.pick(self.material.pool[column.table, column.name] or [value])
            low, high = sorted((value, other))
            if low == high:
                return None
            a, b = number_text(low), number_text(high)
            after: tuple[str, ...] = (f"with {name} between {a} and {b}", f"with {with_article(name)} from {a} to {b}",
                     f"whose {name} is between {a} and {b}", f"{name} {a} to {b}", f"{name} {a}-{b}", f"{name} between {a} and {b}",
                     f"with {name} of at least {a} and at most {b}", f"with {with_article(name)} between {a} and {b}", f"having {with_article(name)} between {a} and {b}",
                     f"with {name} at least {a} but not more than {b}", f"{name} from {a} to {b}", f"with {name} in the range {a} to {b}")
            if head(column.label) in MONEY:
                unit = self.pick(("", "", " euros", " euro", " dollars"))
                after += tuple(text + unit for text in (f"that cost between {a} and {b}", f"between {a} and {b}", f"costing between {a} and {b}", f"priced between {a} and {b}", f"priced from {a} to {b}", f"from {a} to {b}", f"for {a} to {b}",
                          f"costing at least {a} but not more than {b}", f"that cost {a} to {b}", f"costing at least {a} and at most {b}", f"priced at {a} to {b}", f"for between {a} and {b}", f"which cost from {a} up to {b}"))
            elif sum(c.is_number for c in table.columns) < 3:
                after += (f"between {a} and {b}", f"from {a} to {b}")
            test = f"BETWEEN {a} AND {b}"
            return Clause((f"{column.sql} {test}", f"{column.full} {test}"), after, (), (), (), frozenset([column.full]))
        operator = self.pick((">", ">", ">", "<", "<", "<", ">=", ">=", "<=", "<=", "="))
        if operator == "=":
            return self._exactly(column, text, name)
        up = operator[0] == ">"
        strict = {
            ">": ("more than", "over", "above", "higher than", "greater than", "bigger than", ">", "larger than", "exceeding", "more than", "over", "above", "beyond"),
            "<": ("less than", "under", "below", "lower than", "smaller than", "fewer than", "<", "less than", "under", "below", "not even"),
            ">=": ("at least", "not less than", "minimum", "no less than", ">=", "from", "at least", "a minimum of"),
            "<=": ("at most", "not more than", "maximum", "no more than", "<=", "up to", "at most", "a maximum of", "not over", "not above"),
        }[operator]
        word = self.pick(strict)
        ways = [f"with {name} {word} {text}", f"whose {name} is {word} {text}", f"with {with_article(name)} of {word} {text}",
                 f"{name} {word} {text}", f"where {name} is {word} {text}", f"that have {name} {word} {text}",
                 f"with {word} {text} {name}", f"having {name} {word} {text}", f"with a {name} that is {word} {text}", f"and {with_article(name)} {word} {text}".removeprefix("and "),
                 f"with {with_article(name)} {word} {text}", f"whose {name} was {word} {text}", f"that had {with_article(name)} {word} {text}"]
        if operator in (">", "<"):
            ways += [f"{more} {text}" for more in (adjectives.more if up else adjectives.less)] * 2
            if not self.special(column):
                ways.append(f"{word} {text}" if sum(c.is_number for c in table.columns) == 1 else f"{name} {word} {text}")
        else:
            tail = "or more" if up else "or less"
            better = self.pick(("or more", "or higher", "or above", "and up", "or better", "and above", "upwards") if up else ("or less", "or lower", "or below", "or under", "and below", "or worse"))
            ways += [f"{name} {text} {better}", f"with {name} {text} {better}", f"with {with_article(name)} of {text} {better}"]
            if head(column.label) in ("rating", "score"):
                ways += [f"rated {text} {better}", f"that are rated {text} {better}", f"rated {word} {text}", f"with {text} stars {better}"] * 2
            ways += [f"with {name} of {text} {tail}", f"{name} {text} {tail}", f"with {text} {tail} {name}"]
            if not up and head(column.label) in MONEY:
                ways += [f"that cost {text} or less", f"for {text} at most"]
        if head(column.label) in MONEY:
            unit = self.pick((" euros", " euro", " dollars", " EUR", "", ""))
            ways += [f"{word} {text}", f"that cost {word} {text}", f"costing {word} {text}", f"for {word} {text}",
                      f"{word} {text}{unit}", f"{word} ${text}", f"priced {word} {text}", f"for {word} {text}{unit}", f"that cost {word} {text}{unit}", f"which cost {word} {text}{unit}", f"cost {word} {text}"]
            if not up:
                ways += [f"cheaper than {text}{unit}", f"that are cheaper than {text}{unit}"] if operator == "<" else [f"for {text}{unit} or less", f"{text}{unit} or cheaper"]
            elif operator == ">":
                ways += [f"more expensive than {text}{unit}", f"that are more expensive than {text}{unit}"]
        pieces = self.pick(("pieces", "units", "items", "")) if stock else ""
        if stock and not up:
            ways += [f"with {word} {text} in stock", f"with {word} {text} left", f"of which we have {word} {text}", f"of which there are {word} {text} left", f"running low with {word} {text} left",
                      f"{word} {text} in stock", f"with {word} {text} {pieces} left", f"with {word} {text} {pieces} in stock", f"that have {word} {text} {pieces} left", f"{word} {text} {pieces} left", f"of which {word} {text} {pieces} are left"]
        elif stock:
            ways += [f"with {word} {text} in stock", f"of which we have {word} {text}", f"{word} {text} in stock", f"with {word} {text} {pieces} in stock", f"of which there are {word} {text} {pieces}", f"that have {word} {text} {pieces} in stock"]
        test = f"{operator} {text}"
        return Clause((f"{column.sql} {test}", f"{column.full} {test}"), tuple(ways), (), (), (), frozenset([column.full]))

    def _none_or_some(self, column: Column, stock: bool) -> Clause:
        """A number that is zero, or is not: "out of stock", "free of charge"."""
        zero = self.chance(0.65)
        none: tuple[str, ...] = ("without {c}", "with no {c}", "with zero {c}", "whose {c} is 0", "that have no {c}", "with 0 {c}")
        some: tuple[str, ...] = ("with {c}", "whose {c} is not 0", "with some {c}", "whose {c} is above 0", "that have {c}")
        if stock:
            none = (*none, *("out of stock", "that are out of stock", "sold out", "not in stock", "that ran out",
                    "not available", "unavailable", "with nothing left", "with empty stock", "which are sold out", "we ran out of",
                    "no longer available", "no longer in stock", "that have run out", "which we cannot deliver", "of which nothing is left",
                    "that are gone", "of which we have none left", "with none left", "that sold out", "that are all gone"))
            some = (*some, *("in stock", "that are in stock", "available", "still in stock", "currently in stock",
                    "that we have in stock", "on stock", "still available", "which are available", "that we can deliver", "left in stock",
                    "that are still left", "available now", "in the warehouse"))
        if head(column.label) in MONEY or column.role == "money":
            what = self.column(column).removesuffix(" cost").removesuffix(" price")
            none = (*none, "free of charge", f"with free {what}", "that were free", f"for which {what} was free",
                    f"without any {what} costs", f"with no {what} costs", f"free {what}", "for free", "at no cost", "that cost nothing",
                    f"where {what} was free", f"without {what} costs", f"that had free {what}", f"had free {what}", f"had no {what} costs", "that were free of charge", f"with {what} for free")
        ahead: tuple[str, ...] = ()
        if stock:
            ahead = ("out of stock", "sold out", "unavailable") if zero else ("available", "in-stock", "deliverable")
        words = tuple(text.replace("{c}", self.column(column)) for text in (none if zero else some))
        test = "= 0" if zero else "> 0"
        return Clause((f"{column.sql} {test}", f"{column.full} {test}"), words, ahead, (), (), frozenset([column.full]))

    def _exactly(self, column: Column, text: str, name: str) -> Clause:
        """A number that is given: "rated 5 stars", "with a limit of exactly 5000"."""
        ways = [f"with {name} {text}", f"with {with_article(name)} of {text}", f"whose {name} is {text}", f"with exactly {text} {name}", f"with {name} exactly {text}",
                f"with {with_article(name)} of exactly {text}", f"{name} = {text}", f"where {name} is exactly {text}", f"that have {with_article(name)} of {text}",
                f"{name} equal to {text}", f"with {name} equal to {text}", f"having {name} {text}"]
        if head(column.label) in ("rating", "score", "stars"):
            ways += [f"rated {text}", f"rated {text} stars", f"with {text} stars", f"that are rated {text}", f"with {text} points"] * 2
        if head(column.label) in MONEY:
            ways += [f"that cost {text}", f"costing {text}", f"for {text} euros", f"that cost exactly {text}", f"priced at {text}", f"for exactly {text}"] * 2
        return Clause((f"{column.sql} = {text}", f"{column.full} = {text}"), tuple(ways), (), (), (), frozenset([column.full]))

    def _date(self, table: Table, used: frozenset[str], depth: int) -> Clause | None:
        places = [
            (path, column)
            for path, column in self._places(table, used, min(depth, 2))
            if column.role == "date" and column.values > 3 and "birth" not in column.label
        ]
        # "Orders in 2023" are those placed then: the date of a row comes before the dates of what it belongs to.
        places = [(path, column) for path, column in places if len(path) == min(len(other) for other, _ in places)]
        place = self._choose(places)
        return None if place is None else self.date(table, *place)

    def date(self, table: Table, path: Path, column: Column, kind: str | None = None) -> Clause | None:
        """A condition on a date: in a year or month, before or after a day or year, between two."""
        drawn = self.row_values(table, [(path, column)])
        if drawn is None:
            return None
        day = str(drawn[0])
        year, month = day[:4], int(day[5:7])
        month_name = MONTHS[month - 1]
        done = done_on(column)
        own, full = column.sql, column.full
        if column.stamp:
            own, full = f"date({own})", f"date({full})"
        kind = kind or self.rng.choices(("year", "month", "since", "after", "before", "between", "day"), (38, 15, 11, 9, 11, 8, 8))[0]
        when: tuple[str, ...]
        before: tuple[str, ...] = ()
        if kind == "year":
            test = [f"strftime('%Y', {name}) = '{year}'" for name in (column.sql, column.full)]
            when = (f"in {year}", f"in {year}", f"in the year {year}", f"during {year}", f"from {year}", f"{year}", f"of {year}", f"for {year}")
            before = (year,)
        elif kind == "month":
            test = [f"strftime('%Y-%m', {name}) = '{day[:7]}'" for name in (column.sql, column.full)]
            when = (f"in {month_name} {year}", f"in {month_name} {year}", f"during {month_name} {year}", f"{month_name} {year}",
                    f"from {month_name} {year}", f"in {month_name[:3]} {year}", f"in {month_name} of {year}", f"for {month_name} {year}")
            before = (f"{month_name} {year}",)
        elif kind == "since":
            bound, text = self._bound(day, first=True)
            test = [f"{name} >= '{bound}'" for name in (own, full)]
            when = (f"since {text}", f"from {text} on", f"since {text}", f"starting in {text}", f"from {text} onwards", f"not before {text}", f"since the beginning of {text}", f"since {text}", f"from {text} until now", f"since the start of {text}")
        elif kind == "after":
            bound, text = self._bound(day, first=False)
            test = [f"{name} > '{bound}'" for name in (own, full)]
            when = (f"after {text}", f"later than {text}", f"after {text}", f"past {text}", f"after the end of {text}" if len(text) == 4 else f"after {text}")
        elif kind == "before":
            bound, text = self._bound(day, first=True)
            test = [f"{name} < '{bound}'" for name in (own, full)]
            when = (f"before {text}", f"until {text}", f"earlier than {text}", f"before {text}", f"prior to {text}", f"up to {text}", f"before {text}")
        elif kind == "between":
            if self.chance(0.45):
                # Quarters and halves of a year reach the model as their first and last day.
                first = 1 + 3 * int(self.rng.random() * 4)
                a = day if self.chance(0.3) else f"{year}-{first:02d}-01"
                months = self.pick((3, 3, 6, 1))
                last = min(int(a[5:7]) + months - 1, 12)
                b = f"{a[:4]}-{last:02d}-{self.pick((28, 30, 30))}" if last != 12 else f"{a[:4]}-12-31"
                if b <= a:
                    return None
                test = [f"{name} BETWEEN '{a}' AND '{b}'" for name in (own, full)]
                when = (f"between {a} and {b}", f"from {a} to {b}", f"between {a} and {b}", f"from {a} until {b}")
            else:
                end = str(int(year) + 1 + int(self.rng.random() * 3))
                test = [f"{name} BETWEEN '{year}-01-01' AND '{end}-12-31'" for name in (own, full)]
                when = (f"between {year} and {end}", f"from {year} to {end}", f"in {year} to {end}", f"{year}-{end}", f"from {year} until {end}", f"in the years {year} to {end}", f"between {year} and {end}")
        else:
            test = [f"{name} = '{day}'" for name in (own, full)]
            text = self._day(day)
            when = (f"on {text}", f"on {text}", f"at {text}", f"of {text}", f"from {text}", f"{text}")
        after = [*when]
        for verb in done:
            after += [f"{verb} {self.pick(when)}" for _ in range(2)]
        after += [f"with {with_article(column.label)} {self.pick(when)}", f"whose {column.label} is {self.pick(when)}",
                  f"{column.label} {self.pick(when)}"]
        return Clause((test[0], test[1]), tuple(after), before, (), (path,) if path else (), frozenset([column.full]))

    def _bound(self, day: str, *, first: bool) -> tuple[str, str]:
        """A bound as SQL and in words: a year's or month's first or last day, or the day itself."""
        chance = self.rng.random()
        if chance < 0.55:
            return (f"{day[:4]}-01-01" if first else f"{day[:4]}-12-31"), day[:4]
        if chance < 0.75:
            month = MONTHS[int(day[5:7]) - 1]
            last = {"02": "28", "04": "30", "06": "30", "09": "30", "11": "30"}.get(day[5:7], "31")
            return (f"{day[:7]}-01" if first else f"{day[:7]}-{last}"), f"{month} {day[:4]}"
        return day, self._day(day)

    def _day(self, day: str) -> str:
        month, number = MONTHS[int(day[5:7]) - 1], str(int(day[8:10]))
        suffix = "th" if number[-2:] in ("11", "12", "13") else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
        return self.pick((day, day, f"{month} {number}, {day[:4]}", f"{number} {month} {day[:4]}", f"{month} {number} {day[:4]}", f"{number}{suffix} of {month} {day[:4]}"))

    def _missing(self, table: Table, used: frozenset[str]) -> Clause | None:
        columns = [c for c in table.columns if c.nulls > 0 and c.role not in ("other", "key") and c.full not in used]
        if not columns:
            return None
        column = self.pick(columns)
        name, gone = self.column(column), self.chance(0.65)
        no = ("without {c}", "with no {c}", "without any {c}", "that have no {c}", "missing {c}", "with missing {c}",
              "whose {c} is missing", "whose {c} is unknown", "that don't have {a}", "lacking {a}", "not {d}", "without {a}",
              "for which we have no {c}", "that do not have {a}", "with an unknown {c}", "that lack {a}", "who have no {c}", "having no {c}", "who didn't give {a}", "with empty {c}", "with unknown {c}")
        has = ("with {a}", "that have {a}", "who have {a}", "whose {c} is known", "for which we have {a}", "having {a}")
        done = {"rating": "rated", "review": "reviewed"}.get(head(column.label), f"having {with_article(name)}")
        words = tuple(text.replace("{c}", name).replace("{a}", with_article(name)).replace("{d}", done) for text in (no if gone else has))
        test = "IS NULL" if gone else "IS NOT NULL"
        before = ("unrated",) if gone and head(column.label) == "rating" else ()
        return Clause((f"{column.sql} {test}", f"{column.full} {test}"), words, before, (), (), frozenset([column.full]))

    def _contains(self, table: Table, used: frozenset[str]) -> Clause | None:
        columns = [c for c in table.columns if c.role == "text" and c.asked and c.values > 5 and c.full not in used]
        if not columns:
            return None
        column = self.pick(columns)
        drawn = self.row_values(table, [((), column)])
        if drawn is None:
            return None
        words = [word for word in str(drawn[0]).split() if len(word) > 2 and word.isalpha()]
        if not words:
            return None
        word, name = self.pick(words), self.column(column)
        shown = self.pick((f'"{word}"', f"'{word}'", f'"{word.lower()}"'))
        if self.chance(0.3):
            test = f"LIKE '{word}%'"
            after: tuple[str, ...] = (f"whose {name} starts with {shown}", f"starting with {shown}", f"that start with {shown}", f"{name} beginning with {shown}",
                     f"whose {name} begins with {shown}")
        else:
            test = f"LIKE '%{word}%'"
            after = (f"whose {name} contains {shown}", f"with {shown} in the {name}", f"containing {shown}", f"with the word {shown}",
                     f"that have {shown} in their {name}", f"with {shown} in their {name}", f"that contain {shown}")
        return Clause((f"{column.sql} {test}", f"{column.full} {test}"), after, (), (), (), frozenset([column.full]))

    def child(self, table: Table, *, negative: bool | None = None) -> Clause | None:
        """A condition on rows of a child table: that there are none, or some (with a condition of their own)."""
        keys = [key for key in self.schema.foreign_keys if key.parent == table.name and key.table != table.name]
        if not keys:
            return None
        key = self.pick(keys)
        child = self.schema.table(key.table)
        negative = self.chance(0.6) if negative is None else negative
        what = self.many(child)
        verbs = looked_up(lexicon.VERBS, child.one) or ()
        # A verb fits the row that does it ("customers who ordered"), and what it is done with ("products never sold").
        passive = "line" in child.one or "item" in child.one or "detail" in child.one
        column = quote(key.column)
        target = quote(key.parent_column)
        extra, more, full = "", "", what
        joins: str | None = f"FROM {child.sql}"
        if not negative or self.chance(0.25):
            own = self._condition_of_child(child, key) if self.chance(0.5) or not negative else None
            if own is not None:
                extra, more = f" WHERE {own.sql[bool(own.paths)]}", " " + self.pick(own.after)
                joins = source(self.schema, child, own.paths)
                full = f"{self.pick(own.before)} {what}" if own.before and self.chance(0.5) else what + more
        if negative and not extra and any(c.name == key.column and c.nulls for c in child.columns):
            extra = f" WHERE {column} IS NOT NULL"
        if joins is None:
            return None
        named = f"{child.sql}.{column}" if " JOIN " in joins else column
        inner = f"SELECT {named} {joins}{extra}"
        test = f"{'NOT IN' if negative else 'IN'} ({inner})"
        after: list[str]
        if negative:
            after = [f"without {full}", f"with no {full}", f"without any {full}", f"that have no {full}", f"with zero {full}",
                     f"who have no {full}", f"that don't have any {full}", f"that have never had {with_article(singular(what))}{more}",
                     f"not having any {full}", f"that do not have {full}"]
            for verb in verbs:
                past = lexicon.PAST.get(verb, verb)
                if passive:
                    verbal = [f"that were never {past}", f"never {past}", f"nobody {past}", f"that have never been {past}", f"no one {past}", f"that no customer {past}", f"nobody has {past} yet",
                              f"that nobody {past}", f"which nobody has {past}", f"not {past} yet", f"which have not been {past}", f"which nobody ever {past}",
                              f"we never {past}", f"that were not {past}", f"that did not {verb}", f"that don't {verb}"]
                else:
                    verbal = [f"who never {past}", f"who have never {past}", f"who haven't {past} anything", f"that never {past}",
                              f"who did not {verb} anything", f"who didn't {verb}", f"who never {past} anything", f"that have not {past} yet",
                              f"who have not {past} anything yet", f"that never {past} anything from us"]
                after += [text + more for text in verbal]
        else:
            after = [f"with {full}", f"that have {full}", f"who have {full}", f"with at least one {singular(what)}{more}", f"having {full}",
                     f"that have at least one {singular(what)}{more}", f"with any {full}"]
            for verb in verbs:
                past = lexicon.PAST.get(verb, verb)
                verbal = (
                    [f"that were {past}", f"{past}", f"that have been {past}", f"which were {past} at least once"]
                    if passive
                    else [f"who {past}", f"that {past}", f"who have {past}", f"who {past} something"]
                )
                after += [text + more for text in verbal]
        return Clause(
            (f"{target} {test}", f"{table.sql}.{target} {test}"), tuple(after), (), (), (),
            frozenset([f"child {child.name}"]),
        )

    def _condition_of_child(self, child: Table, key: ForeignKey) -> Clause | None:
        """A condition on a child's rows, of the child itself or the date of another parent: "not ordered in 2024"."""
        if self.chance(0.4):
            dated = [
                (path, column)
                for path in self.paths(child)
                if len(path) < 2 and path != (key,)
                for column in self.target(child, path).columns
                if column.role == "date" and column.values > 3 and "birth" not in column.label
            ]
            if dated:
                path, column = self.pick(dated)
                return self.date(child, path, column, self.pick(("year", "year", "year", "month", "since", "before")))
        return self.condition(child, depth=0)

    def bought(self, table: Table) -> Clause | None:
        """Rows that a junction links to a row of another table: "customers who bought lamps"."""
        options = []
        for junction in self.schema.tables:
            ways = [path for path in self.paths(junction) if path and path[-1].parent == table.name]
            for way in ways:
                for other in self.paths(junction):
                    if other and other[0] != way[0] and other[-1].parent != table.name:
                        if {k.parent for k in other} & {k.parent for k in way}:
                            continue
                        options.append((junction, way, other))
        if not options:
            return None
        junction, way, other = self.pick(options)
        end = self.schema.table(other[-1].parent)
        columns = [c for c in end.columns if c.is_choice and c.values > 1 and (c in end.identity or c.values < 100)]
        if not columns:
            return None
        column = self.pick(columns)
        clause = self.equal(junction, other, column, "equal")
        if clause is None:
            return None
        chain = way[:-1]
        joins = source(self.schema, junction, [path for path in (chain, other) if path])
        if joins is None:
            return None
        key = way[-1]
        column_sql = f"{quote(key.table)}.{quote(key.column)}"
        inner = f"SELECT {column_sql} {joins} WHERE {clause.sql[1]}"
        verbs = looked_up(lexicon.VERBS, junction.one) or looked_up(lexicon.VERBS, way[0].label) or ("have",)
        past = [lexicon.PAST.get(verb, verb).replace(" something", "").replace(" an order", "") for verb in verbs]
        value = literal_text(clause.sql[1])
        what = [value.lower(), value, f"{value} {self.several(other[0].label)}", f"{self.several(other[0].label)} {self.pick(clause.after)}"]
        if len(way) < len(other):
            # What is bought, not who buys: "products that Ann Smith ordered".
            buyer = [value, f"the {other[-1].label} {value}"] if column in end.identity else [f"{self.several(other[-1].label)} {self.pick(clause.after)}"]
            after = [f"{that} {who} {verb}" for that in ("that", "which", "") for verb in past for who in buyer]
            after += [f"{verb} by {who}" for verb in past for who in buyer] + [f"that were {verb} by {who}" for verb in past for who in buyer]
        else:
            after = [f"{who} {verb} {thing}" for who in ("who", "that", "which") for verb in past for thing in what]
            after += [f"that have {verb} {thing}" for verb in past for thing in what] + [f"with {thing}" for thing in what]
        target = quote(key.parent_column)
        test = f"IN ({inner})"
        return Clause(
            (f"{target} {test}", f"{table.sql}.{target} {test}"), tuple(after), (), (), (), frozenset(["bought"]),
        )

    def neighbour(self, table: Table) -> Clause | None:
        """Rows that a table of pairs links to another row of the same table: "states that border Texas".

        The other row is named, or the first in some order. The rows in question may also belong to such a row: "rivers
        in states that border Texas".
        """
        pairs = [
            (one, other)
            for one in self.schema.foreign_keys
            for other in self.schema.foreign_keys
            if one.table == other.table and one.column != other.column and one.parent == other.parent
            and (title := self.schema.table(one.parent).title) is not None and other.parent_column == title.name
        ]
        direct = [pair for pair in pairs if pair[0].parent == table.name]
        above = [(key, pair) for pair in pairs for key in self.schema.parents(table.name) if key.parent == pair[0].parent and key.table != pair[0].table]
        if not direct and not above:
            return None
        way = None
        if direct and (not above or self.chance(0.7)):
            one, other = self.pick(direct)
        else:
            way, (one, other) = self.pick(above)
        holder = self.schema.table(other.table)
        drawn = self.row_values(holder, [((), holder.column(other.column))])
        if drawn is None:
            return None
        label = next((text for text in (one.label, other.label) if text != self.schema.table(one.parent).one), one.label)
        words = [*(lexicon.PREPOSITIONS.get(label) or (f"with {label}", f"whose {label} is")), f"that {label}", f"which {label}"]
        parent = self.schema.table(one.parent)
        ranked = [c for c in parent.columns if c.is_number and c.values > 3]
        value, test = str(drawn[0]), f"= {literal(str(drawn[0]))}"
        if ranked and self.chance(0.25):
            column, down = self.pick(ranked), self.chance(0.7)
            value = "the " + superlative(self, column, down).replace("{one}", parent.one)
            test = f"= (SELECT {quote(other.parent_column)} FROM {parent.sql} ORDER BY {column.sql} {'DESC' if down else 'ASC'} LIMIT 1)"
        inner = f"SELECT {quote(one.column)} FROM {quote(one.table)} WHERE {quote(other.column)} {test}"
        after = [f"{word} {value}" for word in words]
        target = quote(one.parent_column)
        if way is not None:
            target = quote(way.column)
            before = lexicon.PREPOSITIONS.get(way.label) or ("in", "of")
            after = [f"{self.pick(before)} {plural(parent.one)} {text}" for text in after]
        return Clause(
            (f"{target} IN ({inner})", f"{table.sql}.{target} IN ({inner})"), tuple(after), columns=frozenset(["neighbour"])
        )

    def best_parent(self, table: Table) -> Clause | None:
        """Rows of the parent that is first in some order: "orders of the newest customer"."""
        keys = [key for key in self.schema.parents(table.name) if self.schema.table(key.parent).identity]
        if not keys:
            return None
        key = self.pick(keys)
        parent = self.schema.table(key.parent)
        columns = [c for c in parent.columns if (c.is_number or c.role == "date") and c.values > 3]
        if not columns:
            return None
        column, down = self.pick(columns), self.chance(0.7)
        words = superlative(self, column, down)
        gone = f" WHERE {column.sql} IS NOT NULL" if column.nulls and not down else ""
        inner = f"SELECT {quote(key.parent_column)} FROM {parent.sql}{gone} ORDER BY {column.sql} {'DESC' if down else 'ASC'} LIMIT 1"
        test = f"= ({inner})"
        what = words.replace("{one}", self.one(key.label))
        prepositions = looked_up(lexicon.PREPOSITIONS, key.label) or ("of", "for", "from", "in")
        after = tuple(f"{word} the {what}" for word in prepositions)
        return Clause(
            (f"{quote(key.column)} {test}", f"{table.sql}.{quote(key.column)} {test}"), after, (), (), (), frozenset([column.full]),
        )

    # ---- measures

    def measures(self, table: Table) -> list[Measure]:
        """What can be added up in a table: its numbers, and a quantity times a price."""
        found = [
            Measure((c.sql, c.full), (c.label, *(looked_up(lexicon.COLUMNS, c.label) or ())), (c,))
            for c in table.columns
            if c.measure and c.values > 3
        ]
        counts = [c for c in table.columns if c.is_number and head(c.label) in COUNTS]
        prices = [c for c in table.columns if c.role == "money" and head(c.label) in MONEY]
        if len(counts) == 1 and len(prices) == 1:
            q, p = counts[0], prices[0]
            found.append(
                Measure((f"{q.sql} * {p.sql}", f"{q.full} * {p.full}"), ("revenue",), (q, p), revenue=True)
            )
            found.append(Measure((q.sql, q.full), ("units",), (q,), units=True))
        stocks = [c for c in table.columns if c.is_number and head(c.label) in ("stock", "inventory")]
        if len(stocks) == 1 and len(prices) == 1:
            q, p = stocks[0], prices[0]
            found.append(Measure((f"{q.sql} * {p.sql}", f"{q.full} * {p.full}"), ("stock value",), (q, p), stored=True))
        elif len(prices) == 1 and head(prices[0].label) in ("total", "amount"):
            found.append(Measure((prices[0].sql, prices[0].full), ("revenue",), (prices[0],), revenue=True))
        return found


def superlative(words: Words, column: Column, down: bool) -> str:
    """ "most expensive {one}", "{one} with the highest price"."""
    adjectives = words.scale(column)
    chosen = words.pick(adjectives.most if down else adjectives.least)
    name = words.column(column)
    if words.special(column) and words.chance(0.75) and (column.role != "date" or _only_date(words.schema, column)):
        return f"{chosen} {{one}}"
    general = lexicon.DATES if column.role == "date" else lexicon.GENERAL
    chosen = words.pick(general.most if down else general.least)
    return words.pick((f"{{one}} with the {chosen} {name}", f"{{one}} with {chosen} {name}", f"{{one}} that has the {chosen} {name}", f"{{one}} of {chosen} {name}"))


def _only_date(schema: Schema, column: Column) -> bool:
    return sum(other.role == "date" for other in schema.table(column.table).columns) == 1


def literal_text(sql: str) -> str:
    """The text in the last quotes of a condition."""
    start = sql.index("'") + 1
    return sql[start : sql.rindex("'")].replace("''", "'")
