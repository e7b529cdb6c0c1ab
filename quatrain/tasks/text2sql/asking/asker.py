"""Questions as people ask them, with their SQL, for any database: meanings drawn at random, each in many words."""

from __future__ import annotations

# fmt: off
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quatrain.tasks.text2sql.asking import lexicon
from quatrain.tasks.text2sql.asking.meaning import (
    Clause,
    Measure,
    Path,
    Words,
    done_on,
    head,
    literal_text,
    looked_up,
    source,
    superlative,
)
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.naming import PLACES, plural, plural_label, quote, singular, with_article
from quatrain.tasks.text2sql.schema import Column, Schema, Table
from quatrain.tasks.text2sql.values import literal

REFUSAL = "SELECT 'no answer'"
"""What the model writes for a question that the database cannot answer."""
OFF_TOPIC_SHARE = 0.06
PEOPLE = frozenset("customer client buyer user person member guest visitor patient student".split())
SMALL = (2, 3, 3, 4, 5, 5, 5, 5, 6, 7, 8, 10, 10, 10, 12, 15, 20)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its SQL, and the kind of question."""

    question: str
    sql: str
    kind: str


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows a question is about: the table, its conditions, and the noun phrase."""

    table: Table
    clauses: tuple[Clause, ...]
    phrase: str
    plain: str
    """The words without the noun, for keyword questions."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The joins that the conditions need."""
        return tuple(path for clause in self.clauses for path in clause.paths)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the conditions compare, as `table.column`."""
        return frozenset(name for clause in self.clauses for name in clause.columns)


class Asker:
    """Draws questions about one database. The same `rng` gives the same questions."""

    def __init__(self, schema: Schema, material: Material, rng: random.Random):
        self.schema, self.rng = schema, rng
        self.words = Words(schema, material, rng)
        self.material = material
        self.tables = [table for table in schema.tables if table.identity and table.rows > 1]
        self.weights = [self._weight(table) for table in self.tables]
        kinds: list[tuple[float, Callable[[], Asked | None]]] = [
            (18, self.count), (17, self.listed), (6, self.columns), (11, self.ranked), (2.5, self.ranked_column),
            (9, self.grouped), (9, self.best_group), (8, self.aggregate), (9, self.lookup), (2, self.sorted_rows),
            (3.5, self.distinct), (5, self.share), (4, self.having), (4, self.period), (2, self.above_average), (1.5, self.beyond_row),
            (2, self.compared), (3, self.inside), (3, self.most_members), (1, self.nth), (3, self.key_lookup), (2, self.dates),
        ]
        self.kinds = [kind for _, kind in kinds]
        self.kind_weights = [weight for weight, _ in kinds]

    def _weight(self, table: Table) -> float:
        plain = sum(c.role not in ("key", "reference", "other") for c in table.columns)
        children = sum(key.parent == table.name for key in self.schema.foreign_keys)
        named = 1.0 if table.title is not None or len(table.identity) > 1 else 0.6
        if table.title is None and len(self.schema.parents(table.name)) > 1:
            named = 0.25  # lines of orders and the like: their amounts are asked for, seldom the lines
        return named * (1 + plain) ** 0.5 * (1 + 0.3 * children)

    def ask(self) -> Asked | None:
        """One question, or None when the draw came to nothing."""
        if self.words.chance(OFF_TOPIC_SHARE):
            return Asked(self._off_topic(), REFUSAL, "refusal")
        asked = self.rng.choices(self.kinds, self.kind_weights)[0]()
        if asked is None:
            return None
        return Asked(self._finish(asked.question), asked.sql, asked.kind)

    # ---- wording

    def _finish(self, question: str) -> str:
        question = re.sub(r"\s+", " ", question).strip()
        if self.words.chance(0.07):
            question = _with_filler(question, self.words.pick(lexicon.FILLERS), self.rng)
        if self.words.chance(0.12):
            question = self.words.pick(lexicon.POLITE).replace("{q}", question)
        if self.words.chance(0.15):
            question = _without_small_words(question)
        if self.words.chance(0.45) and question.split(" ", 1)[0] in _QUESTION_WORDS:
            question += "?"
        elif self.words.chance(0.2):
            question += self.words.pick((".", "?", " ?", "!"))
        return question[0].upper() + question[1:] if self.words.chance(0.5) else question

    def _off_topic(self) -> str:
        thing = self.words.pick(lexicon.UNKNOWN["thing"])
        column = self.words.pick(lexicon.UNKNOWN["column"])
        table = self.words.pick(self.tables)
        value = self._some_value()
        chance = self.rng.random()
        if chance < 0.2:
            text = self.words.pick(lexicon.OFF_TOPIC)
        elif chance < 0.4:
            frame = self.words.pick((*lexicon.COUNT, *lexicon.LIST, "average price of {np}", "most expensive {np}"))
            text = frame.replace("{np}", plural(thing))
        elif chance < 0.6:
            frame = self.words.pick(lexicon.ABSENT)
        elif chance < 0.75:
            frame = self.words.pick(lexicon.ABSENT_OF_VALUE)
        else:
            frame = self.words.pick(lexicon.ORDERS + lexicon.STATEMENTS)
        if chance >= 0.4:
            rows = self.rows(table, 1, related=False, depth=1) if self.words.chance(0.4) else None
            plain = self.words.pick([c for c in table.columns if c.role not in ("key", "reference", "other")] or [table.columns[0]])
            text = (
                frame.replace("{c}", column).replace("{np}", rows.phrase if rows else self.words.many(table)).replace("{n}", self.words.one(table.one))
                .replace("{v}", value).replace("{k}", self.words.column(plain)).replace("{t}", thing)
            )
        return self._finish(text)

    def _some_value(self) -> str:
        """A name that occurs in the database."""
        titles = [table.title for table in self.tables if table.title is not None]
        pool = self.material.pool[(title := self.words.pick(titles)).table, title.name] if titles else []
        return str(self.words.pick(pool)) if pool else "this"

    def rows(self, table: Table, conditions: int | None = None, *, related: bool = True, depth: int = 3) -> Rows | None:
        """Rows of a table with some conditions, as a noun phrase."""
        if conditions is None:
            conditions = self.rng.choices((0, 1, 2, 3), (0.16, 0.42, 0.36, 0.06))[0]
        clauses: list[Clause] = []
        used: frozenset[str] = frozenset()
        for _ in range(conditions):
            chance = self.rng.random()
            one = None
            if related and chance < 0.07:
                one = self.words.child(table)
            elif related and chance < 0.13:
                one = self.words.bought(table)
            elif chance < 0.17:
                one = self.words.best_parent(table)
            elif chance < 0.38:
                one = self.words.neighbour(table)
            if one is None:
                one = self.words.condition(table, used=used, depth=depth)
            if one is None or one.columns & used:
                return None
            clauses.append(one)
            used |= one.columns
        if len(clauses) == 2 and self.words.chance(0.12):
            clauses = [self._either(*clauses)]
        return self.phrase(table, clauses)

    def _either(self, first: Clause, second: Clause) -> Clause:
        """One of two conditions, or both: "lamps that are rated above 4 or cost less than 20"."""
        glue = self.words.pick((" or ", " or ", " or that are ", " or else "))
        after = tuple(f"{self.words.pick(first.after)}{glue}{self.words.pick(second.after)}" for _ in range(4))
        sql = (f"({first.sql[0]} OR {second.sql[0]})", f"({first.sql[1]} OR {second.sql[1]})")
        return Clause(sql, after, (), (), (*first.paths, *second.paths), first.columns | second.columns)

    def phrase(self, table: Table, clauses: list[Clause], noun: str | None = None) -> Rows:
        """The noun with its conditions."""
        words = self.words
        noun = noun or words.many(table)
        before: list[str] = []
        after: list[str] = []
        plain: list[str] = []
        replaced = False
        for one in clauses:
            if one.instead and not replaced and words.chance(0.3):
                noun, replaced = words.pick(one.instead), True
            elif one.before and len(before) < 2 and words.chance(0.4):
                before.append(words.pick(one.before))
            else:
                after.append(words.pick(one.after))
            plain.append(words.pick((*one.before, *one.after) if one.before else one.after))
        # What is true of every row is sometimes said, and asks for nothing: "rivers in the usa" where all are.
        same = [c for c in table.columns if c.role in ("text", "category") and c.values == 1 and c.asked]
        if same and words.chance(0.15):
            column = words.pick(same)
            value = str(column.low)
            after.append(words.pick((f"in {value}", f"in the {value}", f"of the {value}", f"of {value}")))
        words.rng.shuffle(after)
        glue = words.pick((" ", " ", " and ", " and ", " and ", ", ", " that are also ", " but ", " which are also ")) if len(after) > 1 else " "
        phrase = " ".join([*before, noun]) + (" " + glue.join(after) if after else "")
        return Rows(table, tuple(clauses), phrase, " ".join(plain))

    def _rest(self, rows: Rows) -> str:
        """The conditions behind a noun that is said apart from them."""
        return " ".join(self.words.pick(clause.after) for clause in rows.clauses)

    # ---- SQL

    def select(self, rows: Rows, output: Callable[[bool], str], paths: tuple[Path, ...] = (), tail: Callable[[bool], str] | None = None) -> str | None:
        """`SELECT output FROM ... WHERE ... tail`."""
        every = list(dict.fromkeys(path for path in (*rows.paths, *paths) if path))  # in an order that a seed fixes
        joined = bool(every)
        tables = source(self.schema, rows.table, every)
        if tables is None:
            return None
        where = " AND ".join(clause.sql[joined] for clause in rows.clauses)
        if len(rows.clauses) == 1 and where.startswith("(") and where.endswith(")") and " OR " in where:
            where = where[1:-1]
        parts = [f"SELECT {output(joined)} {tables}", f"WHERE {where}" if where else "", tail(joined) if tail else ""]
        return " ".join(part for part in parts if part)

    def identity(self, table: Table) -> Callable[[bool], str]:
        """The columns that name a row; DISTINCT where names repeat."""
        def output(joined: bool) -> str:
            text = _names(table.identity, joined)
            repeated = len(table.identity) == 1 and not table.identity[0].unique and table.key is None
            return f"DISTINCT {text}" if repeated else text
        return output

    def _table(self) -> Table:
        return self.rng.choices(self.tables, self.weights)[0]

    def _measured(self) -> Table:
        """A table, more often one that has amounts of money and of units sold."""
        sold = [table for table in self.schema.tables if any(m.revenue or m.units for m in self.words.measures(table))]
        return self.words.pick(sold) if sold and self.words.chance(0.4) else self._table()

    # ---- kinds of question

    def count(self) -> Asked | None:
        table = self._table()
        rows = self.rows(table)
        if rows is None:
            return None
        repeated = table.title is not None and not table.title.unique and table.key is None

        def output(joined: bool) -> str:
            if repeated and table.title is not None:
                return f"COUNT(DISTINCT {table.title.full if joined else table.title.sql})"
            return "COUNT(*)"

        sql = self.select(rows, output)
        if sql is None:
            return None
        chance = self.rng.random()
        verbs = [one for one in rows.clauses if _is_related(one)]
        if self.words.chance(0.5) and (asked := self._done_by(rows)) is not None:
            value, past, noun = asked
            verb = self.words.pick(("place", "make", "have"))
            return Asked(self.words.pick((f"how many {noun} did {value} {verb}", f"how many {noun} has {value} {past}", f"how many {noun} has {value} made", f"how many {noun} does {value} have", f"how often did {value} order" if past == "ordered" else f"how many {noun} did {value} have", f"{value} how many {noun}", f"number of {noun} {value} {past}", f"how many {noun} are from {value}", f"how many times has {value} {past}")), sql, "count")
        if chance < 0.1:
            words = [rows.phrase if self.words.chance(0.5) else f"{self.words.many(table)} {rows.plain}", self.words.pick(("count", "how many", "number", "total number", "total", "#", "how many are there", "how many are these"))]
            if self.words.chance(0.4):
                words.reverse()
            question = " ".join(words)
        elif chance < 0.25 and rows.clauses and not verbs:
            noun, rest = self.words.many(table), self.words.pick(rows.clauses[0].after)
            others = " ".join(self.words.pick(one.after) for one in rows.clauses[1:])
            question = self.words.pick((
                f"how many {noun} are {rest} {others}", f"how many {noun} were {rest} {others}", f"how many {noun} have been {rest} {others}",
                f"how many {noun} are there {rest} {others}", f"how many {noun} do we have {rest} {others}", f"how many {noun} come {rest} {others}",
                f"how many {noun} did we get {rest} {others}", f"how many of our {noun} are {rest} {others}", f"how many {noun} live {rest} {others}",
                f"how many of the {noun} are {rest} {others}", f"{rest} how many {noun} {others}", f"how many {noun} {rest} {others} were there",
                f"how many {noun} had {rest} {others}", f"how many {noun} got {rest} {others}", f"how many {noun} {rest} {others} do we have", f"how many {noun} {rest} {others} exist", f"how many {noun} have {rest} {others}",
            ))
        elif chance < 0.4 and self._is_goods(table):
            question = self.words.pick(lexicon.COUNT_GOODS).replace("{np}", rows.phrase)
        else:
            question = self.words.pick(lexicon.COUNT).replace("{np}", rows.phrase)
        return Asked(question, sql, "count")

    def listed(self) -> Asked | None:
        table = self._table()
        rows = self.rows(table)
        if rows is None:
            return None
        sql = self.select(rows, self.identity(table))
        if sql is None:
            return None
        phrase = rows.phrase
        if self.words.chance(0.5) and (asked := self._done_by(rows)) is not None:
            value, past, noun = asked
            verb = self.words.pick(("place", "make", "have", lexicon.PRESENT.get(past, "make")))
            return Asked(self.words.pick((f"which {noun} did {value} {verb}", f"what {noun} did {value} {verb}", f"which {noun} does {value} have", f"{value}'s {noun}", f"all {noun} of {value}", f"show {noun} of {value}", f"what has {value} ordered", f"what {noun} has {value} made")), sql, "list")
        bought = [one for one in rows.clauses if len(rows.clauses) == 1 and "bought" in one.columns]
        if bought and self.words.chance(0.6):
            noun, what = self.words.many(table), self.words.pick(bought[0].after)
            verb = re.sub(r"^(that|who|which) ", "", what).strip()
            if re.match(r"(?:have )?\w+ by |were |the ", verb) or verb.split()[-1] in lexicon.PRESENT:
                who, past = re.sub(r"^.* by ", "", verb), next((word for word in verb.split() if word in lexicon.PRESENT), "bought")
                who = who.removesuffix(f" {past}").strip()
                verb = lexicon.PRESENT[past]
                question = self.words.pick((f"what did {who} {verb}", f"which {noun} did {who} {verb}", f"what {noun} has {who} {past}", f"which {noun} were {past} by {who}", f"what has {who} {past}", f"{noun} {past} by {who}", f"everything {who} {past}", f"what {noun} did {who} {verb}", f"show what {who} {past}"))
            else:
                question = self.words.pick(("who ", "which {n} ", "what {n} ", "which of our {n} ", "who ", "list {n} who ", "show the {n} who ")).replace("{n}", noun) + verb
            return Asked(question, sql, "list")
        related = [one for one in rows.clauses if len(rows.clauses) == 1 and any(name.startswith("child") for name in one.columns)]
        if related and self.words.chance(0.5):
            what = self.words.pick(related[0].after)
            noun = self.words.many(table)
            verb = re.sub(r"^(that|who|which) ", "", what)
            where = head(table.one) in PLACES and verb.startswith(("have ", "do not have ", "don't have "))
            start = self.words.pick(("in which {n} do we ", "in which {n} do you ", "which {n} ")) if where else self.words.pick(("which {n} ", "which of our {n} ", "what {n} ", "who "))
            if verb != what:
                question = start.replace("{n}", noun) + verb + self.words.pick(("", "", " at all", " so far"))
                return Asked(question, sql, "list")
        if table.key is not None and table.title is None and self.words.chance(0.25):
            one = self.words.one(table.one)
            question = self.words.pick(("{one} numbers of {np}", "{one} ids of {np}", "ids of {np}", "numbers of {np}", "{one} numbers of all {np}", "ids of all {np}", "show the {one} ids of {np}", "list the {one} numbers of {np}", "numbers of all {np}")).replace("{one}", one).replace("{np}", phrase)
        elif rows.clauses and self._is_goods(table) and self.words.chance(0.22):
            question = self.words.pick(lexicon.GOODS).replace("{rest}", self._rest(rows)).replace("{np}", phrase)
        elif not rows.clauses and self._is_goods(table) and self.words.chance(0.3):
            question = self.words.pick(lexicon.ALL_GOODS).replace("{one}", self.words.one(table.one)).replace("{np}", phrase)
        elif self.words.chance(0.12) and rows.clauses:
            noun, rest = self.words.many(table), self._rest(rows)
            question = self.words.pick((
                f"which {noun} are {rest}", f"which {noun} were {rest}", f"what {noun} are {rest}", f"which of our {noun} are {rest}",
                f"which {noun} do we have {rest}", f"which {noun} come {rest}", f"who is {rest}", f"{rest} which {noun} are there",
                f"which {noun} live {rest}", f"which of the {noun} are {rest}", f"what {noun} do you have {rest}", f"which {noun} have we {rest}",
            ))
        else:
            question = self.words.pick(lexicon.LIST).replace("{np}", phrase)
        return Asked(question, sql, "list")

    def _done_by(self, rows: Rows) -> tuple[str, str, str] | None:
        """Who did it, what was done, and the noun, for the rows of one named parent: Ann Smith, "placed", "orders"."""
        if len(rows.clauses) != 1 or len(rows.clauses[0].paths) != 1 or len(rows.clauses[0].paths[0]) != 1:
            return None
        one, parent = rows.clauses[0], self.schema.table(rows.clauses[0].paths[0][0].parent)
        verbs = looked_up(lexicon.VERBS, rows.table.one)
        if not verbs or parent.title is None or not one.sql[1].startswith(f"{parent.title.full} = "):
            return None
        past = lexicon.PAST.get(self.words.pick(verbs), "made").split()[0]
        return literal_text(one.sql[1]), past, self.words.many(rows.table)

    def _is_goods(self, table: Table) -> bool:
        """Whether the rows are things with a price, which "what do you have for less than 20" asks for."""
        priced = any(c.role == "money" and head(c.label) in ("price", "cost") for c in table.columns)
        return priced and table.title is not None and looked_up(lexicon.NOUNS, table.one) is not None

    def _plain(self, table: Table) -> list[Column]:
        return [c for c in table.columns if c.role not in ("other", "key", "reference") and c not in table.identity]

    def columns(self) -> Asked | None:
        """One or two columns of some rows."""
        table = self._table()
        plain = self._plain(table)
        if not plain:
            return None
        rows = self.rows(table)
        if rows is None:
            return None
        chosen = self.rng.sample(plain, 1 if len(plain) < 2 or self.words.chance(0.8) else 2)
        if {c.full for c in chosen} & rows.columns:
            return None
        named = self.words.chance(0.65)
        many = [self.words.column(c, many=True) for c in chosen]
        one = [self.words.column(c) for c in chosen]
        listed, single = " and ".join(many), " and ".join(one)
        identity = self.identity(table)

        def output(joined: bool) -> str:
            texts = [c.full if joined else c.sql for c in chosen]
            return ", ".join([identity(joined), *texts] if named else texts)

        sql = self.select(rows, output)
        if sql is None:
            return None
        name = self.words.pick(("names", "name", "names")) if table.title is not None else plural(table.one)
        np = rows.phrase
        frames: tuple[str, ...]
        if named:
            frames = (f"{np} with their {listed}", f"{np} and their {listed}", f"{name} and {listed} of {np}", f"list {np} with {single}", f"show {np} with their {listed}",
                      f"{name} and {single} of {np}", f"show the {name} and {listed} of all {np}", f"give me {np} and their {listed}", f"what are the {name} and {listed} of {np}",
                      f"list all {np} and their {listed}", f"{np} along with their {single}", f"{single} of each of the {np}", f"{np} with {single}", f"{name}, {single} of {np}",
                      f"for all {np} show {name} and {single}", f"show me {np} together with {listed}", f"{np} including their {single}")
        else:
            frames = (f"{listed} of {np}", f"what are the {listed} of {np}", f"show the {listed} of all {np}", f"list the {listed} of {np}", f"{listed} for {np}", f"give me the {listed} of {np}",
                      f"{single} of {np}", f"what {single} do {np} have", f"what is the {single} of {np}", f"show me the {single} for {np}", f"{listed} of all {np}", f"which {listed} do {np} have",
                      f"find the {listed} of {np}", f"what {listed} do {np} have")
        return Asked(self.words.pick(frames), sql, "columns")

    def _rankable(self, table: Table) -> list[Column]:
        return [c for c in table.columns if c.values > 4 and (c.is_number or c.role == "date") and c not in table.identity]

    def _order(self, column: Column, down: bool, tail: str) -> Callable[[bool], str]:
        return lambda joined: f"ORDER BY {column.full if joined else column.sql} {'DESC' if down else 'ASC'}{tail}"

    def _with_known(self, rows: Rows, column: Column, down: bool) -> Rows:
        """SQLite sorts NULL first: rows without a value are left out where the order goes up."""
        if not column.nulls or down:
            return rows
        known = Clause((f"{column.sql} IS NOT NULL", f"{column.full} IS NOT NULL"), ("",))
        return Rows(rows.table, (*rows.clauses, known), rows.phrase, rows.plain)

    def _ranking(self, table: Table) -> tuple[Rows, Column, bool] | None:
        columns = self._rankable(table)
        if not columns:
            return None
        column = self.words.pick(columns)
        rows = self.rows(table, self.rng.choices((0, 1, 2), (0.5, 0.42, 0.08))[0])
        if rows is None or column.full in rows.columns:
            return None
        return rows, column, self.words.chance(0.65)

    def _adjectives(self, column: Column, down: bool, noun: str) -> str:
        return superlative(self.words, column, down).replace("{one}", noun)

    def _superlative_phrase(self, rows: Rows, column: Column, down: bool, number: int | None) -> str:
        """ "5 cheapest lamps in Paris"; one row without a number."""
        rest = [one for one in rows.clauses]
        after = " ".join(self.words.pick(one.after) for one in rest)
        noun = self.words.several(rows.table.one) if number else self.words.one(rows.table.one)
        for one in rest:
            if one.instead and self.words.chance(0.3):
                noun = one.instead[0] if number else singular(one.instead[0])
                after = " ".join(self.words.pick(other.after) for other in rest if other is not one)
                break
        else:
            if len(rest) == 1 and rest[0].before and self.words.chance(0.3):
                noun, after = f"{self.words.pick(rest[0].before)} {noun}", ""
        text = self._adjectives(column, down, noun)
        if number:
            text = self.words.pick((f"{number} {text}", f"top {number} {text}", f"{text.split(' ')[0]} {number} {' '.join(text.split(' ')[1:])}", f"{number} {text}"))
        return f"{text} {after}".strip()

    def ranked(self) -> Asked | None:
        """The first row, or the first few, by a column."""
        made = self._ranking(self._table())
        if made is None:
            return None
        rows, column, down = made
        number = None if self.words.chance(0.5) else self.words.pick(SMALL)
        full = self._with_known(rows, column, down)
        shown = self.words.chance(0.15)
        identity = self.identity(rows.table)

        def output(joined: bool) -> str:
            return f"{identity(joined)}, {column.full if joined else column.sql}" if shown else identity(joined)

        sql = self.select(full, output, tail=self._order(column, down, f" LIMIT {number or 1}"))
        if sql is None:
            return None
        phrase = self._superlative_phrase(rows, column, down, number)
        name = self.words.column(column)
        if shown:
            what = self.words.pick((f"and its {name}", f"and their {name}", f"with its {name}", f"with {name}", f"and what is its {name}", f"and the {name}", "and how much is it" if column.role == "money" else f"including {name}",
                                    "and what does it cost" if head(column.label) in ("price", "cost") else f"along with its {name}", f"and its {name}"))
            return Asked(self.words.pick((f"what is the {phrase} {what}", f"the {phrase} {what}", f"{phrase} {what}", f"which is the {phrase} {what}", f"show the {phrase} {what}", f"what are the {phrase} {what}", f"give me the {phrase} {what}")), sql, "ranked")
        if number is None:
            one = self.words.one(rows.table.one)
            frames = [f"what is the {phrase}", f"which is the {phrase}", f"{phrase}", f"the {phrase}", f"show the {phrase}", f"find the {phrase}", f"give me the {phrase}",
                      f"what's the {phrase}", f"who is the {phrase}", f"what is our {phrase}", f"name of the {phrase}", f"what is the name of the {phrase}", f"our {phrase}"] * 2
            general = lexicon.DATES if column.role == "date" else lexicon.GENERAL
            adjective = self.words.pick(general.most if down else general.least)
            rest = self._rest(rows)
            frames += [f"which {one} {rest} has the {adjective} {name}", f"what {one} {rest} has the {adjective} {name}", f"which {one} has the {adjective} {name} {rest}",
                       f"who has the {adjective} {name} {rest}", f"{one} with {adjective} {name} {rest}", f"which {one} {rest} has the {'most' if down else 'least'} {name}"]
            known = self.words.scale(column)
            if self.words.special(column):
                adjective = self.words.pick(known.most if down else known.least)
                frames += [f"which {one} {rest} is the {adjective}", f"which {one} is {adjective} {rest}", f"what {one} is the {adjective} {rest}", f"which of the {plural(one)} {rest} is the {adjective}"]
        else:
            direction = self.words.pick(("highest", "most", "top") if down else ("lowest", "least", "smallest"))
            frames = [f"what are the {phrase}", f"{phrase}", f"the {phrase}", f"show me the {phrase}", f"list the {phrase}", f"give me the {phrase}", f"which are the {phrase}",
                      f"which {phrase}", f"find the {phrase}", f"show {phrase}", f"who are the {phrase}", f"names of the {phrase}", f"i want the {phrase}", f"our {phrase}"] * 2
            if self.words.chance(0.15):
                known = self.words.scale(column)
                frames = [f"{frame} {self.words.pick(('sorted by', 'ordered by', 'by'))} {name}" for frame in frames] + [f"{frame} from {self.words.pick(known.most if down else known.least)} to {self.words.pick(known.least if down else known.most)}" for frame in frames[:6]]
            frames += [f"top {number} {rows.phrase} by {name}" if down else f"bottom {number} {rows.phrase} by {name}", f"{number} {rows.phrase} with the {direction} {name}",
                       f"which {number} {rows.phrase} have the {direction} {name}", f"{number} {rows.phrase} with {direction} {name}"]
        return Asked(self.words.pick(frames), sql, "ranked")

    def ranked_column(self) -> Asked | None:
        """A column of the first row: "email of the newest customer"."""
        made = self._ranking(self._table())
        if made is None:
            return None
        rows, column, down = made
        plain = [c for c in self._plain(rows.table) if c.full != column.full]
        if not plain:
            return None
        chosen = self.words.pick(plain)
        full = self._with_known(rows, column, down)
        sql = self.select(full, lambda joined: chosen.full if joined else chosen.sql, tail=self._order(column, down, " LIMIT 1"))
        if sql is None:
            return None
        phrase, name = self._superlative_phrase(rows, column, down, None), self.words.column(chosen)
        return Asked(self.words.pick((f"{name} of the {phrase}", f"what is the {name} of the {phrase}", f"what's the {name} of the {phrase}", f"what {name} does the {phrase} have",
                                      f"show the {name} of the {phrase}", f"the {name} of the {phrase}", f"which {name} does the {phrase} have", f"{name} {phrase}", f"{phrase} {name}")), sql, "ranked column")

    def nth(self) -> Asked | None:
        """The second or third row by a column."""
        made = self._ranking(self._table())
        if made is None:
            return None
        rows, column, down = made
        place = self.words.pick((2, 2, 2, 3))
        full = self._with_known(rows, column, down)
        sql = self.select(full, self.identity(rows.table), tail=self._order(column, down, f" LIMIT 1 OFFSET {place - 1}"))
        if sql is None:
            return None
        phrase = self._superlative_phrase(rows, column, down, None)
        ordinal = {2: "second", 3: "third"}[place]
        return Asked(self.words.pick((f"what is the {ordinal} {phrase}", f"{ordinal} {phrase}", f"the {ordinal} {phrase}", f"which is the {ordinal} {phrase}")), sql, "nth")

    def sorted_rows(self) -> Asked | None:
        made = self._ranking(self._table())
        if made is None:
            return None
        rows, column, down = made
        sql = self.select(rows, self.identity(rows.table), tail=self._order(column, down, ""))
        if sql is None or (column.nulls and not down):
            return None
        name, known, np = self.words.column(column), self.words.scale(column), rows.phrase
        most, least = self.words.pick(known.most), self.words.pick(known.least)
        first, last = (most, least) if down else (least, most)
        words = self.words.pick((f"sorted by {name}", f"ordered by {name}", f"by {name}", f"sorted by {name}, {first} first", f"from {first} to {last}", f"{first} first", f"ranked by {name}",
                                 f"ordered by {name} {'descending' if down else 'ascending'}", f"sorted by {name} {'descending' if down else 'ascending'}", f"in {'descending' if down else 'ascending'} order of {name}"))
        if not down or "desc" in words or "first" in words or "from" in words:
            return Asked(self.words.pick((f"{np} {words}", f"list {np} {words}", f"show all {np} {words}", f"show me {np} {words}", f"all {np} {words}", f"list of {np} {words}")), sql, "sorted")
        return None

    # ---- groups

    def _groups(self, table: Table) -> list[tuple[Path, tuple[Column, ...], str]]:
        """What rows can be grouped by: own columns with few values, parents, columns of parents."""
        found: list[tuple[Path, tuple[Column, ...], str]] = []
        for path in self.words.paths(table):
            target = self.words.target(table, path)
            for c in target.columns:
                if path and c.label in {own.label for own in table.columns}:
                    continue
                if c.is_choice and 1 < c.values <= 400 and not c.unique and c not in target.identity:
                    found.append((path, (c,), c.label))
            if path and target.identity and self.schema.named(path[-1]):
                found.append((path, target.identity, path[-1].label))
        seen: dict[str, int] = {}
        for path, _, label in found:
            seen[label] = min(seen.get(label, 9), len(path))
        return [item for item in found if len(item[0]) == seen[item[2]]]

    def _group(self, table: Table) -> tuple[Path, tuple[Column, ...], str] | None:
        groups = self._groups(table)
        if not groups:
            return None
        return self.rng.choices(groups, [(1.0, 0.9, 0.5, 0.3)[len(path)] for path, _, _ in groups])[0]

    def _by(self, path: Path, columns: tuple[Column, ...], joined: bool) -> str:
        if path:
            target = self.schema.table(path[-1].parent)
            if columns == target.identity and target.key is not None and not columns[-1].unique:
                return target.key.full
        return _names(columns, joined)

    def _measure(self, table: Table) -> tuple[str, Measure, str] | None:
        """A function, its measure, its SQL with `{}` for the measure, and its words for "{m} of {np}"."""
        chance = self.rng.random()
        found = self.words.measures(table)
        money = [m for m in found if m.revenue or m.units]
        stored = [m for m in found if m.stored]
        if stored and chance < 0.18:
            return "stored", stored[0], "SUM({})"
        if money and chance < 0.6:
            measure = self.words.pick(money)
            return ("revenue" if measure.revenue else "units"), measure, "SUM({})"
        plain = [m for m in found if not m.revenue and not m.units and not m.stored]
        if not plain or chance > 0.9:
            return None
        measure = self.words.pick(plain)
        function = self.rng.choices(("average", "sum", "maximum", "minimum"), (50, 22, 15, 13))[0]
        if function == "sum" and {"rating", "score", "age", "year", "density", "percent", "rate"} & set(measure.columns[0].label.split()):
            function = "average"
        return function, measure, {"average": "AVG({})", "sum": "SUM({})", "maximum": "MAX({})", "minimum": "MIN({})"}[function]

    def _measure_words(self, function: str, measure: Measure, np: str, rest: str) -> list[str]:
        """The ways to say an aggregate over some rows, without a question word."""
        name = self.words.column(measure.columns[0]) if not measure.revenue else "revenue"
        own = f"{measure.columns[0].table and self.schema.table(measure.columns[0].table).one} {name}"
        if function == "average":
            return [f"average {name} of {np}", f"average {name} of {np}", f"mean {name} of {np}", f"avg {name} of {np}", f"average {name} for {np}", f"{name} of {np} on average", f"average {name} {rest or np}",
                    f"average {own} {rest}", f"mean {own} {rest}", f"typical {name} of {np}", f"average {name} {rest}", f"mean {name} {rest}", f"average {name} among {np}"]
        if function == "sum":
            stock = [f"{name} {rest}", f"number of pieces in stock {rest}", f"units in stock {rest}", f"total {name} {rest}", f"pieces in stock {rest}", f"number of units in stock {rest}", f"how much {name} {rest}", f"{name} of {np}"] * 2
            return [f"total {name} of {np}", f"sum of {plural_label(name)} of {np}", f"overall {name} of {np}", f"total {name} for {np}", f"combined {name} of {np}", f"{name} of {np} in total", f"total {name} {rest or np}",
                    f"total {own} {rest}", f"sum of all {plural_label(name)} {rest}", f"total {name} {rest}", f"{name} in total {rest}", f"all {plural_label(name)} {rest} added up", *(stock if head(measure.columns[0].label) in ("stock", "inventory") else ())]
        if function == "maximum":
            words = self.words.pick(("highest", "maximum", "largest", "biggest", "max", "greatest", "top"))
            return [f"{words} {name} of {np}", f"{words} {name} among {np}", f"{words} {name} {rest or np}", f"{words} {name} for {np}", f"{words} {own} {rest}", f"{words} {name} {rest}", f"{words} {name} of any {np}", f"{words} {name} {rest} ever"]
        if function == "minimum":
            words = self.words.pick(("lowest", "minimum", "smallest", "min", "least"))
            return [f"{words} {name} of {np}", f"{words} {name} among {np}", f"{words} {name} {rest or np}", f"{words} {name} for {np}", f"{words} {own} {rest}", f"{words} {name} {rest}", f"most low {name} of {np}", f"{words} {name} of any {np}"]
        if function == "stored":
            return [f"stock value of {np}", f"value of {np} in stock", f"inventory value of {np}", f"total value of the stock of {np}", f"value of the stock {rest}", f"stock value {rest}", f"value of the inventory {rest}", f"worth of {np} in stock"]
        if function == "units":
            return [f"number of units sold {rest}", f"units sold {rest}", f"total quantity sold {rest}", f"quantity sold {rest}", f"total quantity {rest}", f"number of items sold {rest}", f"pieces sold {rest}",
                    f"total number of products sold {rest}", f"total quantity of {np}"]
        return [f"revenue {rest}", f"total revenue {rest}", f"sales {rest}", f"total sales {rest}", f"turnover {rest}", f"income {rest}", f"revenue from {np}", f"sales revenue {rest}", f"money made {rest}", f"earnings {rest}", f"sales value {rest}"]

    def aggregate(self) -> Asked | None:
        table = self._measured()
        found = self._measure(table)
        if found is None:
            return None
        function, measure, pattern = found
        rows = self.rows(table, self.rng.choices((0, 1, 2), (0.3, 0.58, 0.12))[0])
        if rows is None or {c.full for c in measure.columns} & rows.columns:
            return None
        sql = self.select(rows, lambda joined: pattern.replace("{}", measure.sql[joined]))
        if sql is None:
            return None
        rest = self._rest(rows)
        text = self.words.pick(self._measure_words(function, measure, rows.phrase, rest))
        frames = [f"what is the {text}", f"what's the {text}", text, f"what was the {text}", f"the {text}", f"calculate the {text}", f"show the {text}", f"tell me the {text}", f"give me the {text}", f"what is our {text}"]
        goods = self._goods_phrase(rows) if function in ("revenue", "units") else ""
        if function == "revenue":
            frames += [f"revenue with {goods}", f"revenue from {goods}", f"how much did we earn with {goods}", f"how much money did we make with {goods}", f"sales of {goods}", f"how much did {goods} bring in", f"turnover with {goods}", f"what did we earn with {goods}", f"how much did customers spend on {goods}", f"total sales of {goods}"] if goods else []
            buyers = self._buyers_phrase(rows)
            frames += [f"how much did {buyers} spend", f"how much have {buyers} spent", f"how much money did {buyers} spend with us", f"turnover with {buyers}", f"revenue from {buyers}", f"how much did {buyers} buy for", f"money spent by {buyers}", f"how much did {buyers} pay us", f"what did {buyers} spend in total"] * 2 if buyers else []
            frames += [f"how much revenue did we make {rest}", f"how much money did we make {rest}", f"how much did we sell {rest}", f"how much did we earn {rest}", f"how much was spent {rest}",
                       f"how much money was made {rest}", f"how much have we sold {rest}", f"how much money did we take {rest}", f"how much money came in {rest}", f"what did we earn {rest}"] * 2
        if function == "stored":
            np = rows.phrase
            frames += [f"how much is our stock worth {rest}", f"how much are {np} in stock worth", f"what is the stock worth {rest}", f"how much money is tied up in stock {rest}", f"what are all {np} in stock worth", f"how much are all {np} in stock worth together"] * 2
        if function == "units":
            frames += [f"how many units of {goods} were sold", f"how many {goods} were sold", f"how many {goods} did we sell", f"number of {goods} sold", f"units of {goods} sold", f"how many {goods} have we sold", f"how many pieces of {goods} did we sell", f"sold quantity of {goods}", f"how many {goods} went out", f"how many {goods} were ordered"] if goods else []
            frames += [f"how many units were sold {rest}", f"how many units did we sell {rest}", f"how many items were sold {rest}", f"how many pieces did we sell {rest}", f"how many products were sold {rest}",
                       f"how many were sold {rest}", f"how many units have been sold {rest}", f"how many items did we sell {rest}"] * 2
        column = measure.columns[0]
        if function == "average" and head(column.label) in ("price", "cost"):
            np = rows.phrase
            frames += [f"how much do {np} cost on average", f"how expensive are {np} on average", f"what do {np} cost on average", f"how much does {with_article(self.words.one(table.one))} {rest} cost on average"]
        if function == "sum" and table.title is not None:
            frames += [f"how much {self.words.column(column)} do {rows.phrase} have in total", f"how many {self.words.column(column)} do {rows.phrase} have together", f"how much {self.words.column(column)} is there in total {rest}"]
        if function == "sum" and head(column.label) in ("stock", "inventory"):
            frames += [f"how many units are in stock {rest}", f"how many {rows.phrase} are in stock in total", f"how many items do we have in stock {rest}"]
        return Asked(self.words.pick(frames), sql, function)

    def _goods_phrase(self, rows: Rows) -> str:
        """What was sold, where the rows are the lines of sales: "Ember lamps in 2023"; "" where it is not known."""
        return self._parent_phrase(rows, lambda path: len(path) == 1 and self._is_goods(self.schema.table(path[0].parent)))

    def _buyers_phrase(self, rows: Rows) -> str:
        """Who bought: "customers from Spain"; "" where the rows know no people, or all of them."""
        return self._parent_phrase(rows, lambda path: path[-1].label in PEOPLE)

    def _parent_phrase(self, rows: Rows, fits: Callable[[Path], bool]) -> str:
        """The rows named after a parent that conditions are about, the other conditions behind it."""
        ways = [path for path in self.words.paths(rows.table) if path and fits(path)]
        if not ways or not rows.clauses:
            return ""
        way = min(ways, key=len)
        about = [one for one in rows.clauses if one.paths and all(path[: len(way)] == way for path in one.paths)]
        if not about:
            return ""
        noun = self.words.several(way[-1].label)
        first = self.phrase(self.schema.table(way[-1].parent), about, noun).phrase
        others = " ".join(self.words.pick(one.after) for one in rows.clauses if one not in about)
        return f"{first} {others}".strip()

    def grouped(self) -> Asked | None:
        table = self._measured()
        group = self._group(table)
        if group is None:
            return None
        path, columns, label = group
        found = None if self.words.chance(0.5) else self._measure(table)
        rows = self.rows(table, self.rng.choices((0, 1), (0.7, 0.3))[0], related=False, depth=1)
        if rows is None or {c.full for c in columns} & rows.columns:
            return None
        function, measure, pattern = found or ("count", None, "COUNT(*)")
        if measure is not None and {c.full for c in measure.columns} & rows.columns:
            return None

        def output(joined: bool) -> str:
            names = _names(columns, joined)
            return f"{names}, {pattern.replace('{}', measure.sql[joined]) if measure else pattern}"

        sql = self.select(rows, output, (path,), lambda joined: f"GROUP BY {self._by(path, columns, joined)}")
        if sql is None:
            return None
        (g, gs), np = self._group_words(columns, label), rows.phrase
        rest = self._rest(rows)
        if measure is None:
            m = self.words.pick((f"number of {np}", f"how many {np}", f"count of {np}", f"{np}", f"how many {np} are there", f"how many {np} do we have", f"count {np}", f"number of {np}"))
            frames = [f"how many {np} does each {g} have", f"how many {np} are in each {g}", f"how many {np} are there in each {g}", f"each {g} and its number of {np}", f"{gs} and their number of {np}",
                      f"for each {g}, how many {np} are there", f"list {gs} with their number of {np}", f"{gs} with number of {np}", f"which {gs} have how many {np}", f"{np} count by {g}", f"number of {np} in every {g}",
                      f"show the number of {np} for each {g}", f"for every {g} the number of {np}", f"breakdown of {np} by {g}", f"distribution of {np} by {g}",
                      f"how many {np} does every {g} have", f"for each {g} how many {np} do we have", f"how are {np} distributed over {gs}", f"{np} {g} by {g}", f"count {np} for each {g}", f"how many {np} per {g} do we have"]
        else:
            m = self.words.pick(self._measure_words(function, measure, np, rest))
            if self.words.chance(0.5):
                m = f"{self.words.pick(('what is the', 'show the', 'the', 'show me the', 'give me the', 'list the', 'what was the'))} {m}"
            frames = [f"for each {g} the {m}", f"{gs} with their {m}", f"{m} of each {g}", f"{m} in each {g}"]
        frames += [f"{m} {word} {g}" for word in ("per", "by", "for each", "for every", "in each", "per", "by", "grouped by", "broken down by", "split by", "of each")]
        return Asked(self.words.pick(frames), sql, "group")

    def _group_words(self, columns: tuple[Column, ...], label: str) -> tuple[str, str]:
        """One group and several groups, by the column's words or those of the table that it refers to."""
        if len(columns) > 1 or columns[0].label != label:
            one = self.words.one(label)
            return one, plural(one)
        holder = self._holder(columns[0])
        one = self.words.one(holder) if holder != label and self.words.chance(0.7) else self.words.column(columns[0])
        return one, plural_label(one)

    def best_group(self) -> Asked | None:
        """The group, or the few, with the most rows or the most of a measure."""
        table = self._measured()
        group = self._group(table)
        if group is None:
            return None
        path, columns, label = group
        found = None if self.words.chance(0.5) else self._measure(table)
        function, measure, pattern = found or ("count", None, "COUNT(*)")
        rows = self.rows(table, self.rng.choices((0, 1), (0.72, 0.28))[0], related=False, depth=2)
        if rows is None or {c.full for c in columns} & rows.columns:
            return None
        down = self.words.chance(0.75)
        number = None if self.words.chance(0.6) else self.words.pick(SMALL)

        def output(joined: bool) -> str:
            return _names(columns, joined)

        def tail(joined: bool) -> str:
            value = pattern.replace("{}", measure.sql[joined]) if measure else pattern
            return f"GROUP BY {self._by(path, columns, joined)} ORDER BY {value} {'DESC' if down else 'ASC'} LIMIT {number or 1}"

        sql = self.select(rows, output, (path,), tail)
        if sql is None:
            return None
        (g, gs), np = self._group_words(columns, label), rows.phrase
        rest = self._rest(rows)
        most, high = ("most", self.words.pick(("highest", "largest", "biggest", "greatest"))) if down else (self.words.pick(("fewest", "least")), self.words.pick(("lowest", "smallest")))
        n = f"{number} " if number else ""
        w, have = (gs, "have") if number else (g, "has")
        verbs = looked_up(lexicon.VERBS, table.one) or ()
        passive = any(word in table.one for word in ("line", "item", "detail"))
        near = bool(path) and columns == self.schema.table(path[-1].parent).identity
        if measure is None:
            frames = [f"which {n}{w} {have} the {most} {np}", f"{n}{w} with the {most} {np}", f"{n}{w} with {most} {np}", f"what {n}{w} {have} the {most} {np}", f"which {n}{w} {have} the {high} number of {np}",
                      f"{n}{w} with the {high} number of {np}", f"{n}{w} by number of {np}" if number and down else f"{w} having the {most} {np}", f"what is the {g} with the {most} {np}" if not number else f"what are the {number} {gs} with the {most} {np}"]
            if number:
                frames += [f"top {number} {gs} by number of {np}", f"top {number} {gs} by {np}", f"the {number} {gs} with the {most} {np}", f"list the {number} {gs} with the {most} {np}"] if down else [f"the {number} {gs} with the {most} {np}"]
            if near and verbs and not passive:
                for verb in verbs:
                    past = lexicon.PAST.get(verb, verb).split()[0]
                    frames += [f"which {n}{w} {past} the {most} {rest}", f"which {n}{w} {past} the {most} {np}", f"who {past} {most} {rest}", f"which {n}{w} {past} {'most' if down else 'least'} often {rest}", f"who {past} the {most} {np}"]
            elif down and (not path or (near and len(path) == 1)):
                frames += [f"most common {w} of {np}", f"what is the most common {g} of {np}", f"most popular {w} {rest}", f"most frequent {w} of {np}", f"which {w} is the most common {rest}", f"what is the most popular {g} {rest}", f"most used {w} {rest}", f"which {w} is used most {rest}"]
                if number:
                    frames += [f"{number} most common {gs} of {np}", f"{number} most popular {gs} {rest}"]
                if near and passive:
                    frames += [f"most popular {n}{w} {rest}", f"most often sold {w} {rest}", f"which {n}{w} {'are' if number else 'is'} sold most often {rest}", f"which {n}{w} {'are' if number else 'is'} ordered most often {rest}"]
        elif function == "stored":
            frames = [f"which {n}{w} {have} the {high} stock value {rest}", f"{n}{w} with the {high} value in stock {rest}", f"which {n}{w} {have} the most money in stock {rest}" if down else f"{n}{w} with the {high} stock value {rest}", f"{n}{w} by stock value {rest}" if number and down else f"{n}{w} with the {high} inventory value {rest}"]
        elif function == "revenue":
            frames = [f"which {n}{w} {'bring' if number else 'brings'} in the {most} {'revenue' if down else 'money'} {rest}", f"{n}{w} with the {high} revenue {rest}", f"which {n}{w} {have} the {high} revenue {rest}", f"which {n}{w} made the {most} money {rest}",
                      f"{n}{w} with the {high} sales {rest}", f"which {n}{w} generated the {most} revenue {rest}", f"{n}{w} with the {most} revenue {rest}", f"which {n}{w} sold {'best' if down else 'worst'} {rest}", f"which {n}{w} {have} the {high} turnover {rest}"]
            if number and down:
                frames += [f"top {number} {gs} by revenue {rest}", f"top {number} {gs} by sales {rest}", f"{number} best selling {gs} by revenue {rest}", f"{number} best {gs} by turnover {rest}"] * 2
            if near and label in ("customer", "client", "user", "person", "member", "buyer"):
                frames += [f"which {n}{w} spent the {most} {rest}", f"who spent the {most} money {rest}", f"which {n}{w} spent {'most' if down else 'least'} {rest}", f"{'best' if down else 'worst'} {n}{w} {rest}", f"{n}{w} that spent the {most} {rest}", f"who spent the {most} {rest}",
                           f"biggest spenders {rest}" if number else f"biggest {w} by spending {rest}", f"top {number or ''} {gs} by money spent {rest}" if down else f"which {n}{w} spent the {most} money {rest}", f"which {n}{w} paid the {most} {rest}"] * 2
        elif function == "units":
            best = "best" if down else "worst"
            frames = [f"{best} selling {n}{w} {rest}", f"{n}{best} selling {w} {rest}", f"what is the {best} selling {g} {rest}" if not number else f"what are the {number} {best} selling {gs} {rest}", f"which {n}{w} sold the {most} units {rest}", f"which {n}{w} sold {best} {rest}",
                      f"{n}{w} with the {most} units sold {rest}", f"{n}{best}-selling {w} {rest}", f"which {n}{w} {'were' if number else 'was'} sold the {most} {rest}", f"{'most' if down else 'least'} sold {w} {rest}", f"{n}{w} with the {high} quantity sold {rest}", f"what {w} do we sell the most {rest}",
                      f"{n}most popular {w} {rest}" if down else f"{n}least popular {w} {rest}", f"top {number} selling {gs} {rest}" if number and down else f"which {g} sells {best} {rest}", f"bestseller {rest}" if down and not number else f"{n}{best} sellers {rest}"]
        else:
            name = self.words.column(measure.columns[0])
            agg = {"average": self.words.pick(("average", "mean", "average")), "sum": self.words.pick(("total", "combined", "overall", "total")), "maximum": "maximum", "minimum": "minimum"}[function]
            frames = [f"which {n}{w} {have} the {high} {agg} {name} {rest}", f"{n}{w} with the {high} {agg} {name} {rest}", f"what {n}{w} {have} the {high} {agg} {name} {rest}", f"top {number} {gs} by {agg} {name} {rest}" if number and down else f"the {n}{w} with the {high} {agg} {name} {rest}",
                      f"{w} with {high} {agg} {name} of {np}", f"which {n}{w} {have} the {high} {agg} {name} of {np}"]
            if self.words.special(measure.columns[0]) and function == "average":
                known = self.words.scale(measure.columns[0])
                adjective = self.words.pick(known.most if down else known.least)
                frames += [f"which {w} is {adjective} on average {rest}", f"which {w} has the {adjective} {self.words.many(table)} on average {rest}", f"{adjective} {w} on average {rest}"]
        return Asked(self.words.pick(frames), sql, "best group")

    def most_members(self) -> Asked | None:
        """What has the most rows of a table that holds several rows for one thing: "the river through most states"."""
        options = []
        for table in self.schema.tables:
            keys = self.schema.parents(table.name)
            title = table.title
            if title is not None and title.values * 1.3 < table.rows:
                options += [(table, title.sql, table.one, key) for key in keys if title.name != key.column]
            if not table.identity and len(keys) == 2 and keys[0].parent == keys[1].parent:
                options.append((table, quote(keys[0].column), self.schema.table(keys[0].parent).one, keys[1]))
        if not options:
            return None
        table, output, label, key = self.words.pick(options)
        down = self.words.chance(0.7)
        sql = f"SELECT {output} FROM {table.sql} GROUP BY {output} ORDER BY COUNT(*) {'DESC' if down else 'ASC'} LIMIT 1"
        verbs = [word.removeprefix("that ") for word in lexicon.PREPOSITIONS.get(key.label, ()) if word.startswith("that ")] or ["have"]
        one, many, verb = self.words.one(label), self.words.several(self.schema.table(key.parent).one), self.words.pick(verbs)
        does = " ".join([f"{verb.split()[0]}s".replace("haves", "has").replace("passs", "passes").replace("gos", "goes").replace("crosss", "crosses"), *verb.split()[1:]])
        most = "most" if down else self.words.pick(("fewest", "least"))
        frames = (f"which {one} {does} the {most} {many}", f"what {one} {does} the {most} {many}", f"{one} that {does} the {most} {many}", f"which {one} {does} {most} {many}", f"{one} with the {most} {plural(key.label)}",
                  f"the {one} which {does} the {most} {many}", f"what is the {one} that {does} the {most} {many}")
        return Asked(self.words.pick(frames), sql, "most members")

    def having(self) -> Asked | None:
        table = self._table()
        group = self._group(table)
        if group is None:
            return None
        path, columns, label = group
        rows = self.rows(table, self.rng.choices((0, 1), (0.8, 0.2))[0], related=False, depth=1)
        if rows is None or {c.full for c in columns} & rows.columns:
            return None
        size = self.material.group_size(self.rng, table.name, (path, columns[0]))
        operator = self.words.pick((">", ">", ">=", "<"))
        number = max(1, size - 1) if operator == ">" else size + 1 if operator == "<" else max(2, size)
        if number > 20 and self.words.chance(0.8):
            number = round(number, -1)
        sql = self.select(rows, lambda joined: _names(columns, joined), (path,),
                          lambda joined: f"GROUP BY {self._by(path, columns, joined)} HAVING COUNT(*) {operator} {number}")
        if sql is None:
            return None
        (_, gs), np = self._group_words(columns, label), rows.phrase
        amount = {">": (f"more than {number}", f"over {number}"), ">=": (f"at least {number}", f"{number} or more"), "<": (f"fewer than {number}", f"less than {number}")}[operator]
        text = self.words.pick(amount)
        frames = [f"{gs} with {text} {np}", f"which {gs} have {text} {np}", f"list {gs} that have {text} {np}", f"{gs} having {text} {np}", f"what {gs} have {text} {np}", f"show {gs} with {text} {np}", f"all {gs} with {text} {np}"]
        for verb in looked_up(lexicon.VERBS, table.one) or ():
            past = lexicon.PAST.get(verb, verb).split()[0]
            if path and columns == self.schema.table(path[-1].parent).identity and "line" not in table.one:
                frames += [f"which {gs} {past} {text} {np}", f"{gs} who {past} {text} {np}", f"who {past} {text} times", f"{gs} that {past} {text} times", f"who {past} {text} {np}"]
        return Asked(self.words.pick(frames), sql, "having")

    def period(self) -> Asked | None:
        """A count or measure per year or month."""
        table = self._measured()
        places = [(p, c) for p in self.words.paths(table) if len(p) < 3 for c in self.words.target(table, p).columns if c.role == "date" and c.values > 7 and "birth" not in c.label]
        if not places:
            return None
        nearest = min(len(path) for path, _ in places)
        path, column = self.words.pick([place for place in places if len(place[0]) == nearest])
        found = None if self.words.chance(0.5) else self._measure(table)
        function, measure, pattern = found or ("count", None, "COUNT(*)")
        monthly = self.words.chance(0.35)
        best = self.words.chance(0.3)
        clauses: list[Clause] = []
        if monthly and self.words.chance(0.7):
            one = self.words.date(table, path, column, "year")
            if one is None:
                return None
            clauses = [one]
        elif self.words.chance(0.25):
            one = self.words.condition(table, depth=1)
            if one is None or column.full in one.columns:
                return None
            clauses = [one]
        rows = self.phrase(table, clauses)
        unit = "month" if monthly else "year"

        def by(joined: bool) -> str:
            return f"strftime('{'%Y-%m' if monthly else '%Y'}', {column.full if joined else column.sql})"

        def value(joined: bool) -> str:
            return pattern.replace("{}", measure.sql[joined]) if measure else pattern

        down = self.words.chance(0.8)
        if best:
            sql = self.select(rows, by, (path,), lambda joined: f"GROUP BY {by(joined)} ORDER BY {value(joined)} {'DESC' if down else 'ASC'} LIMIT 1")
        else:
            sql = self.select(rows, lambda joined: f"{by(joined)}, {value(joined)}", (path,), lambda joined: f"GROUP BY {by(joined)}")
        if sql is None:
            return None
        rest, np = self._rest(rows), rows.phrase
        done = done_on(column)
        if measure is None:
            m = self.words.pick((f"number of {np}", f"how many {np}", f"{np}", f"count of {np}", f"how many {np} were there", f"how many {np} did we have", f"how many {np} {self.words.pick(done)}" if done else f"number of {np}"))
        else:
            m = self.words.pick(self._measure_words(function, measure, np, rest))
        if best:
            most = "most" if down else "fewest"
            what = f"the {most} {np}" if measure is None else f"the {'highest' if down else 'lowest'} {m}"
            return Asked(self.words.pick((f"which {unit} had {what}", f"in which {unit} were there {what}", f"{unit} with {what}", f"what {unit} had {what}", f"in which {unit} did we have {what}", f"which was the {unit} with {what}", f"{'best' if down else 'worst'} {unit} for {np if measure is None else m}",
                f"{'best' if down else 'worst'} {unit} {rest} by {self.words.pick(('number of ', '')) + self.words.many(table) if measure is None else self.words.pick(self._measure_words(function, measure, self.words.many(table), ''))}", f"{'best' if down else 'worst'} {unit} {rest}" if measure is not None and measure.revenue else f"which {unit} had {what}",
                f"what was the {'best' if down else 'worst'} {unit} for {np if measure is None else m}", f"in which {unit} was {what}")), sql, "best period")
        words = ("per month", "by month", "for each month", "monthly", "each month", "every month", "month by month") if monthly else ("per year", "by year", "for each year", "yearly", "each year", "every year", "year by year", "over the years", "annually")
        word = self.words.pick(words)
        return Asked(self.words.pick((f"{m} {word}", f"{m} {word}", f"show {m} {word}", f"what is the {m} {word}" if measure else f"{m} {word}", f"{word} {m}", f"{m} {column.label} {word}" if measure is None else f"{m} {word}")), sql, "period")

    # ---- others

    def distinct(self) -> Asked | None:
        table = self._table()
        columns = [c for c in table.columns if c.is_choice and c.role != "boolean" and c.values > 1 and c.values * 1.5 <= table.rows and c not in table.identity]
        if not columns:
            return None
        column = self.words.pick(columns)
        rows = self.rows(table, self.rng.choices((0, 1), (0.7, 0.3))[0], related=False, depth=1)
        if rows is None or column.full in rows.columns:
            return None
        counted = self.words.chance(0.4)
        sql = self.select(rows, lambda joined: (f"COUNT(DISTINCT {column.full if joined else column.sql})" if counted else f"DISTINCT {column.full if joined else column.sql}"))
        if sql is None:
            return None
        names, np = self.words.column(column, many=True), rows.phrase
        of = f"of {np}" if rows.clauses or self.words.chance(0.5) else ""
        different = self.words.pick(("", "different ", "distinct ", "different ", "unique "))
        if counted:
            frames: tuple[str, ...] = (f"how many {different}{names} are there {of}", f"number of {different or 'different '}{names} {of}", f"how many {different}{names} do we have {of}", f"count of {different or 'distinct '}{names} {of}", f"how many {different}{names} do {np} have", f"from how many {different}{names} are {np}", f"how many {different}{names} do {np} come from")
        else:
            frames = (f"which {different}{names} are there {of}", f"what {different}{names} are there {of}", f"list the {different or 'different '}{names} {of}", f"all {different}{names} {of}", f"show all {different}{names} {of}", f"which {names} do we have {of}", f"what {names} do we have {of}", f"{different or 'different '}{names} {of}", f"list all {names}", f"which {names} do {np} have", f"what {names} do {np} come from", f"which {names} do we sell {of}", f"what are the {different}{names} {of}")
        return Asked(self.words.pick(frames), sql, "distinct")

    def share(self) -> Asked | None:
        table = self._table()
        one = self.words.condition(table, depth=2)
        if one is None:
            return None
        base = self.rows(table, self.rng.choices((0, 1), (0.7, 0.3))[0], related=False, depth=0)
        if base is None or one.columns & base.columns:
            return None
        sql = self.select(base, lambda joined: f"100.0 * SUM({one.sql[joined]}) / COUNT(*)", one.paths)
        if sql is None:
            return None
        what, which = base.phrase, self.words.pick((*one.before, *one.after, *one.after))
        word = self.words.pick(("share", "percentage", "percent", "proportion", "fraction", "part", "percentage"))
        number, noun = self.words.pick(("%", "percent", "percentage")), self.words.many(table)
        frames: tuple[str, ...] = (f"what {word} of {what} are {which}", f"what {word} of {what} is {which}", f"{word} of {what} {which}", f"what is the {word} of {what} {which}", f"which {word} of {what} were {which}", f"{word} of {which} {noun}" if not base.clauses else f"{word} of {what} that are {which}",
                  f"how many {number} of {what} are {which}", f"how much {number} of {what} are {which}", f"what's the {word} of {which} {noun}" if not base.clauses else f"{word} of {what} being {which}", f"what {number} of {what} {which}", f"in {number}, how many {what} are {which}", f"what {word} of our {what} are {which}", f"what {word} of {what} were {which}", f"how big is the {word} of {what} {which}", f"how high is the {word} of {what} {which}", f"{word} {what} {which}", f"what {word} of {what} got {which}", f"what {word} of {what} have {which}", f"what {word} of {what} has {which}",
                  f"how many {number} of our {what} are {which}")
        if one.before:
            rest, ahead = self._rest(base), self.words.pick(one.before)
            frames += (f"{word} of {ahead} {noun} {rest}", f"what is the {word} of {ahead} {noun} {rest}", f"how big is the {word} of {ahead} {noun} {rest}", f"{number} of {ahead} {noun} {rest}", f"{word} {ahead} {noun} {rest}", f"{rest} what is the {word} of {ahead} {noun}") * 2
        rate = lexicon.RATES.get(literal_text(one.sql[0])) if "= '" in one.sql[0] and "!=" not in one.sql[0] else None
        if rate:
            frames = (*frames, *(f"{rate} rate {self._rest(base)}", f"what is the {rate} rate {self._rest(base)}", f"{rate} rate of {what}", f"what is our {rate} rate {self._rest(base)}", f"{rate} rate for {what}", f"how high is the {rate} rate of {what}") * 2)
        return Asked(self.words.pick(frames), sql, "share")

    def above_average(self) -> Asked | None:
        table = self._table()
        columns = [c for c in table.columns if c.measure and c.values > 4]
        if not columns:
            return None
        column, above = self.words.pick(columns), self.words.chance(0.65)
        counted = self.words.chance(0.3)
        inner = f"SELECT AVG({column.sql}) FROM {table.sql}"
        test = f"{column.sql} {'>' if above else '<'} ({inner})"
        output = "COUNT(*)" if counted else self.identity(table)(False)
        sql = f"SELECT {output} FROM {table.sql} WHERE {test}"
        name, known = self.words.column(column), self.words.scale(column)
        side = self.words.pick(("above", "over", "higher than") if above else ("below", "under", "lower than"))
        ways = [f"with {name} {side} average", f"whose {name} is {side} the average", f"with {with_article(name)} {side} average", f"with above-average {name}" if above else f"with below-average {name}", f"{side} average {name}", f"with a {'higher' if above else 'lower'} {name} than average"]
        ways += [f"{word} average" for word in (known.more if above else known.less)] * 2
        np = f"{self.words.many(table)} {self.words.pick(ways)}"
        return Asked(self.words.pick(lexicon.COUNT if counted else lexicon.LIST).replace("{np}", np), sql, "above average")

    def beyond_row(self) -> Asked | None:
        """Rows above or below one that is named: "products that cost more than the Walnut Kettle"."""
        tables = [t for t in self.tables if t.title is not None and t.title.values * 1.3 >= t.rows]
        table = self.words.pick(tables) if tables else None
        columns = [c for c in table.columns if c.is_number and c.values > 4] if table is not None else []
        if table is None or table.title is None or not columns:
            return None
        column, above, counted = self.words.pick(columns), self.words.chance(0.6), self.words.chance(0.25)
        drawn = self.words.row_values(table, [((), table.title)])
        if drawn is None:
            return None
        value = str(drawn[0])
        inner = f"SELECT {column.sql} FROM {table.sql} WHERE {table.title.sql} = {literal(value)}"
        output = "COUNT(*)" if counted else self.identity(table)(False)
        sql = f"SELECT {output} FROM {table.sql} WHERE {column.sql} {'>' if above else '<'} ({inner})"
        name, known = self.words.column(column), self.words.scale(column)
        the = self.words.pick((value, value, f"the {value}", f"{table.one} {value}", f"the {table.one} {value}"))
        side = self.words.pick(("higher", "larger", "bigger", "greater") if above else ("lower", "smaller"))
        ways = [f"with {with_article(f'{side} {name}')} than {the}", f"with {'more' if above else 'less'} {name} than {the}", f"whose {name} is {side} than that of {the}", f"with {name} {'above' if above else 'below'} that of {the}", f"that have {with_article(f'{side} {name}')} than {the}"]
        ways += [f"{word} {the}" for word in (known.more if above else known.less)] * 3
        if head(column.label) in ("price", "cost"):
            ways += [f"that cost {'more' if above else 'less'} than {the}", f"costing {'more' if above else 'less'} than {the}", f"that are {'more expensive' if above else 'cheaper'} than {the}", f"{'more expensive' if above else 'cheaper'} than {the}"] * 2
        np = f"{self.words.many(table)} {self.words.pick(ways)}"
        text = self.words.pick(lexicon.COUNT if counted else lexicon.LIST).replace("{np}", np)
        return Asked(text.replace("that cost", "cost") if text.startswith(("which", "how many")) and self.words.chance(0.5) else text, sql, "beyond row")

    def compared(self) -> Asked | None:
        """Two values of a column side by side: "more orders paid by card or by cash"."""
        table = self._table()
        columns = [c for c in table.columns if c.role == "category" and 1 < c.values <= 30]
        if not columns:
            return None
        column = self.words.pick(columns)
        pool = self.material.pool[column.table, column.name]
        if len(pool) < 2:
            return None
        a, b = self.rng.sample(pool, 2)
        test = f"{column.sql} IN ({literal(str(a))}, {literal(str(b))})"
        np = self.words.many(table)
        if self.words.chance(0.5):
            sql = f"SELECT {column.sql} FROM {table.sql} WHERE {test} GROUP BY {column.sql} ORDER BY COUNT(*) DESC LIMIT 1"
            frames: tuple[str, ...] = (f"are there more {a} or {b} {np}", f"do we have more {np} with {a} or {b}", f"which has more {np}, {a} or {b}", f"more {a} or {b} {np}", f"is {a} or {b} more common among {np}", f"what do we have more of, {a} or {b} {np}", f"what is more common, {a} or {b}", f"which is bigger, {a} or {b}", f"are more {np} {a} or {b}", f"are there more {np} with {a} or with {b}", f"do we have more {a} {np} or more {b} {np}", f"are there more {np} by {a} or by {b}", f"do more people use {a} or {b}", f"which is used more often, {a} or {b}", f"do more {np} come from {a} or from {b}")
        else:
            sql = f"SELECT {column.sql}, COUNT(*) FROM {table.sql} WHERE {test} GROUP BY {column.sql}"
            frames = (f"compare {a} and {b} {np}", f"number of {a} and {b} {np} each", f"how many {a} and how many {b} {np}", f"compare the number of {a} and {b} {np}", f"{np} {a} vs {b}")
        return Asked(self.words.pick(frames), sql, "compared")

    def lookup(self) -> Asked | None:
        """Something about a row that is named."""
        options = [t for t in self.tables if t.title is not None and t.title.values > 2]
        if not options:
            return None
        table = self.words.pick(options)
        title = table.title
        repeated = title is not None and title.values * 1.3 < table.rows
        if title is None:
            return None
        choices: list[tuple[Path, Column, str]] = [((), c, c.label) for c in self._plain(table) if c.values > 1]
        for path in self.words.paths(table):
            if 0 < len(path) < 3:
                target = self.words.target(table, path)
                if target.title is not None and self.schema.named(path[-1]):
                    choices.append((path, target.title, path[-1].label))
                # The population of a city is the city's, not that of its state.
                mine = {c.label for c in table.columns}
                choices += [(path, c, c.label) for c in self._plain(target) if c.values > 1 and len(path) == 1 and not repeated and c.label not in mine]
        if not choices:
            return None
        path, column, label = self.words.pick(choices)
        drawn = self.words.row_values(table, [((), title)])
        if drawn is None:
            return None
        value = str(drawn[0])
        clause = Clause((f"{title.sql} = {literal(value)}", f"{title.full} = {literal(value)}"), ("",))
        rows = Rows(table, (clause,), value, "")
        name = self.words.one(label) if path and column == self.words.target(table, path).title else self.words.column(column)
        own = [c for c in table.columns if c.is_choice and head(c.label) in PLACES and c != title and c != column and c.values > 1]
        where = ""
        if own and not path and self.words.chance(0.2):
            place = self.words.pick(own)
            both = self.words.row_values(table, [((), title), ((), place)])
            if both is not None:
                value, where = str(both[0]), self.words.pick((f" {both[1]}", f" in {both[1]}", f", {both[1]}"))
                tests = [f"{a} = {literal(value)} AND {b} = {literal(str(both[1]))}" for a, b in ((title.sql, place.sql), (title.full, place.full))]
                rows = Rows(table, (Clause((tests[0], tests[1]), ("",)),), value, "")
        the = self.words.pick((value, f"the {value}", value, f"{table.one} {value}", f"the {table.one} {value}", f"the {value} {table.one}", f"{value} {table.one}")) + where
        output = "DISTINCT " if repeated else ""
        sql = self.select(rows, lambda joined: output + (column.full if joined else column.sql), (path,))
        if sql is None:
            return None
        verbs = [word for word in lexicon.PREPOSITIONS.get(head(label), ()) if word.startswith("that ")]
        if verbs and not path:
            verb, many = self.words.pick(verbs).removeprefix("that "), self.words.several(self._holder(column))
            return Asked(self.words.pick((f"which {many} does {the} {verb}", f"what {many} does {the} {verb}", f"{many} {the} {verb}s", f"which {many} are {verb}ed by {the}", f"through which {many} does {the} {verb.split()[0]}", f"which {many} {verb} {the}", f"what {many} {verb} {the}", f"{many} that {verb} {the}", f"list the {many} that {the} {verb}s")), sql, "lookup")
        frames = [f"what is the {name} of {the}", f"{name} of {the}", f"{value} {name}", f"what {name} does {the} have", f"what's the {name} of {the}", f"which {name} does {the} have", f"tell me the {name} of {the}",
                  f"show the {name} for {the}", f"{the}: {name}", f"which {name} is {the}", f"give me {the}'s {name}", f"what is {value}'s {name}", f"{value}'s {name}", f"find the {name} of {the}", f"what is the {name} in {the}", f"{name} in {the}", f"what can you tell me about the {name} of {the}", f"name the {name} of {the}", f"give me the {name} of {the}"]
        last = head(label)
        if last in PLACES:
            frames += [f"where is {the}", f"where does {the} live", f"in which {last} is {the}", f"in what {last} is {the}", f"where is {the} located", f"which {last} is {the} in", f"what {last} is {the} in", f"which {last} does {the} come from", f"where does {the} come from", f"where can i find {the}", f"{value} is in which {last}"]
        adjectives = {"price": ("how much is {x}", "how much does {x} cost", "what does {x} cost", "price for {x}", "how expensive is {x}", "cost of {x}", "what do we charge for {x}", "how much do we charge for {x}", "what is the price tag of {x}", "how much money is {x}"), "cost": ("how much is {x}", "how much does {x} cost"),
                      "stock": ("how many {x} are in stock", "how many {x} do we have", "how many {x} are left", "is {x} in stock", "how much {x} is in stock", "do we still have {x}", "how many units of {x} are left", "how many pieces of {x} do we have", "how many {x} do we still have", "is {x} still available", "do we still have {x} in stock", "how many of {x} are there", "stock of {x}", "how many {x} remain", "how many pieces of {x} are in stock", "is there any {x} left"),
                      "rating": ("how good is {x}", "how is {x} rated", "how well is {x} rated", "how many stars does {x} have", "what do people think of {x}", "rating {x}"), "limit": ("how much credit does {x} have", "how much may {x} spend", "up to how much can {x} buy"), "credit": ("how much credit does {x} have",), "segment": ("what kind of customer is {x}", "what type of customer is {x}", "which group is {x} in"), "status": ("what happened to {x}",), "department": ("which department does {x} belong to", "where does {x} belong"), "category": ("what kind of thing is {x}", "which category does {x} belong to", "what is {x}"), "population": ("how many people live in {x}", "how big is {x}", "how many inhabitants does {x} have", "how many people are there in {x}", "how many residents does {x} have", "how many citizens in {x}", "how populous is {x}", "number of people in {x}", "how many people in {x}"),
                      "area": ("how big is {x}", "how large is {x}", "how big is {x}", "size of {x}"), "length": ("how long is {x}",), "height": ("how high is {x}", "how tall is {x}"), "altitude": ("how high is {x}", "how tall is {x}", "how high is the peak of {x}"), "elevation": ("how high is {x}", "how tall is {x}"),
                      "age": ("how old is {x}",), "milliseconds": ("how long is {x}", "how long does {x} take"), "duration": ("how long is {x}",), "weight": ("how heavy is {x}", "how much does {x} weigh"), "density": ("how dense is {x}", "how crowded is {x}"), "brand": ("who makes {x}", "who made {x}", "which company makes {x}"),
                      "artist": ("who made {x}", "who sings {x}", "who recorded {x}", "who is {x} by"), "composer": ("who wrote {x}", "who composed {x}"), "author": ("who wrote {x}",), "capacity": ("how many people fit in {x}", "how big is {x}"), "email": ("how can i reach {x}", "how can i contact {x}", "how do i write to {x}"), "salary": ("how much does {x} earn", "how much does {x} make"), "phone": ("how can i call {x}",)}.get(last, ())
        frames += [frame.replace("{x}", the) for frame in adjectives] * 3
        if column.role == "date":
            done = done_on(column)
            frames += [f"when was {the} {verb.removeprefix('who ')}" for verb in done] + [f"when did {the} {word}" for word in column.label.split()[:1]] + [f"since when do we have {the}", f"when did {the} sign up", f"since when is {the} our {table.one}", f"when did {the} become a {table.one}", f"since when is {the} {with_article(table.one)}", f"how long has {the} been a {table.one}", f"when did {the} register"] * ("join" in column.label)
        return Asked(self.words.pick(frames), sql, "lookup")

    def _holder(self, column: Column) -> str:
        """What the values of a column are: the table that it refers to, else its label."""
        keys = [key for key in self.schema.foreign_keys if (key.table, key.column) == (column.table, column.name)]
        return self.schema.table(keys[0].parent).one if keys else column.label

    def key_lookup(self) -> Asked | None:
        """Something about a row that is called by its number: "status of order 123"."""
        options = [t for t in self.tables if t.key is not None and isinstance(t.key.low, int) and t.title is None and t.rows > 2]
        if not options:
            options = [t for t in self.tables if t.key is not None and isinstance(t.key.low, int)]
        if not options:
            return None
        table = self.words.pick(options)
        choices: list[tuple[Path, Column, str]] = [((), c, c.label) for c in self._plain(table) if c.values > 1]
        for path in self.words.paths(table):
            target = self.words.target(table, path)
            if 0 < len(path) < 3 and target.title is not None:
                choices.append((path, target.title, path[-1].label))
        if not choices or table.key is None:
            return None
        path, column, label = self.words.pick(choices)
        number = 1 + int(self.rng.random() * table.rows)
        clause = Clause((f"{table.key.sql} = {number}", f"{table.key.full} = {number}"), ("",))
        sql = self.select(Rows(table, (clause,), "", ""), lambda joined: column.full if joined else column.sql, (path,))
        if sql is None:
            return None
        name, one = (self.words.one(label) if path else self.words.column(column)), self.words.one(table.one)
        the = self.words.pick((f"{one} {number}", f"{one} number {number}", f"{one} no. {number}", f"{one} #{number}", f"the {one} with id {number}", f"{one} id {number}"))
        frames = [f"what is the {name} of {the}", f"{name} of {the}", f"{the} {name}", f"what {name} does {the} have", f"which {name} is {the}", f"show the {name} of {the}", f"what's the {name} of {the}"]
        if path and path[-1].label in ("customer", "client", "user", "person"):
            frames += [f"who placed {the}", f"who ordered {the}", f"whose {one} is number {number}", f"who made {the}", f"which {name} placed {the}"] * 2
        if column.role == "date":
            frames += [f"when was {the} placed", f"when was {the} made", f"date of {the}", f"on what date was {the} placed", f"what day was {the} placed", f"on which day was {the} made", f"from when is {the}", f"how old is {the}"] * 2
        if head(column.label) in ("payment", "method"):
            frames += [f"how was {the} paid", f"how did they pay for {the}", f"how was {the} paid for", f"how did the customer pay {the}", f"what was {the} paid with", f"by what means was {the} paid"] * 2
        if head(column.label) in ("status", "state"):
            frames += [f"what happened to {the}", f"how is {the} doing", f"where is {the}", f"is {the} done", f"what is going on with {the}", f"in what state is {the}", f"what's up with {the}"] * 2
        if column.role == "money":
            frames += [f"how much was the {name} of {the}", f"what did {the} cost in {name}", f"how much {name} did {the} have"]
        return Asked(self.words.pick(frames), sql, "key lookup")

    def inside(self) -> Asked | None:
        """What a row called by its number holds: "products in order 123", "total value of order 123"."""
        options = [
            (junction, key)
            for junction in self.schema.tables
            for key in self.schema.parents(junction.name)
            if len(self.schema.parents(junction.name)) > 1
            and (parent := self.schema.table(key.parent)).key is not None and isinstance(parent.key.low, int)
        ]
        if not options:
            return None
        junction, key = self.words.pick(options)
        parent = self.schema.table(key.parent)
        number = 1 + int(self.rng.random() * parent.rows)
        column = junction.column(key.column)
        clause = Clause((f"{column.sql} = {number}", f"{column.full} = {number}"), ("",))
        rows = Rows(junction, (clause,), "", "")
        one = self.words.one(key.label)
        the = self.words.pick((f"{one} {number}", f"{one} number {number}", f"{one} no {number}", f"{one} #{number}", f"the {one} {number}", f"{one} with id {number}"))
        others = [other for other in self.schema.parents(junction.name) if other != key and self.schema.table(other.parent).identity]
        money = [m for m in self.words.measures(junction) if m.revenue or m.units]
        if money and self.words.chance(0.4):
            measure = self.words.pick(money)
            sql = self.select(rows, lambda joined: f"SUM({measure.sql[joined]})")
            frames: tuple[str, ...] = (f"total value of {the}", f"what is the total of {the}", f"how much was {the}", f"value of {the}", f"total amount of {the}", f"how much did {the} cost", f"what was {the} worth", f"total price of {the}", f"sum of {the}", f"what is the total value of {the}") if measure.revenue else (f"how many items are in {the}", f"how many pieces were in {the}", f"number of units in {the}", f"how many items does {the} have", f"total quantity of {the}")
        elif others:
            other = self.words.pick(others)
            target = self.schema.table(other.parent)
            counts = [m for m in money if m.units]
            extra = bool(counts) and self.words.chance(0.3)
            sql = self.select(rows, lambda joined: ", ".join([c.full for c in target.identity] + ([counts[0].sql[1]] if extra else [])), ((other,),))
            many = self.words.several(other.label)
            more = self.words.pick(("and how many of each", "and how many", "with quantity", "and their quantity", "with the quantities", "and in what quantity")) if extra else ""
            frames = (f"which {many} are in {the} {more}", f"what {many} are in {the} {more}", f"{many} in {the} {more}", f"which {many} were in {the} {more}", f"list the {many} of {the} {more}", f"what was in {the} {more}", f"what is in {the} {more}", f"content of {the} {more}",
                      f"which {many} does {the} contain {more}", f"{many} of {the} {more}", f"show the {many} of {the} {more}", f"what was ordered in {the} {more}", f"which {many} belong to {the} {more}")
        else:
            return None
        return None if sql is None else Asked(self.words.pick(frames), sql, "inside")

    def dates(self) -> Asked | None:
        """The first or last date of some rows."""
        table = self._table()
        columns = [c for c in table.columns if c.role == "date" and c.values > 3]
        if not columns:
            return None
        column, last = self.words.pick(columns), self.words.chance(0.6)
        rows = self.rows(table, self.rng.choices((0, 1), (0.5, 0.5))[0], related=False)
        if rows is None or column.full in rows.columns:
            return None
        sql = self.select(rows, lambda joined: f"{'MAX' if last else 'MIN'}({column.full if joined else column.sql})")
        if sql is None:
            return None
        word = self.words.pick(("last", "latest", "most recent", "newest") if last else ("first", "earliest", "oldest"))
        rest = self._rest(rows)
        noun = self.words.one(table.one)
        verbs = done_on(column) or ("made",)
        verb = self.words.pick(verbs).removeprefix("who ")
        return Asked(self.words.pick((f"when was the {word} {noun} {rest}", f"{word} {column.label} {rest}", f"date of the {word} {noun} {rest}", f"when was the {word} {noun} {rest} {verb}", f"what is the {word} {column.label} of {rows.phrase}", f"what was the date of the {word} {noun} {rest}", f"when did we have the {word} {noun} {rest}")), sql, "dates")


_QUESTION_WORDS = frozenset("how what which who when where is are do what's do can could in from".split())
_SMALL_WORDS = frozenset("the a an of is are do we have our there all me please that which who their to".split())


def _without_small_words(question: str) -> str:
    """The question as keywords: small words left out, but for those in quotes."""
    if '"' in question or "'" in question:
        return question
    words = question.split(" ")
    kept = [word for word in words if word.lower() not in _SMALL_WORDS]
    return " ".join(kept) if len(kept) > 1 else question


def _with_filler(question: str, filler: str, rng: random.Random) -> str:
    """The question with a word more that asks for nothing: "how many orders do we currently have"."""
    words = question.split(" ")
    if '"' in question or "'" in question or len(words) < 3:
        return f"{question} {filler}"
    place = int(rng.random() * (len(words) + 1)) if rng.random() < 0.5 else len(words)
    return " ".join([*words[:place], filler, *words[place:]])


def _is_related(clause: Clause) -> bool:
    """Whether a condition is about rows of other tables that are not joined, and so has a verb of its own."""
    return any(name.startswith("child") or name == "bought" for name in clause.columns)


def _names(columns: Sequence[Column], joined: bool) -> str:
    """The columns in SQL, with their tables where tables are joined."""
    return ", ".join(column.full if joined else column.sql for column in columns)
