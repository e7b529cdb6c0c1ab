"""What a question says about the values of a database: values named with their column, spelling and numbers repaired.

As in the text-to-SQL systems of the literature (BRIDGE, Lin et al. 2020, arXiv 2012.12627; RESDSQL, Li et al. 2023,
arXiv 2302.05965), values of the database that occur in a question are given to the model with their column:

    How many custmers live in paris?
    how many customers live in Paris | cities.name = 'Paris'

so that a small model need not learn to copy, and finds a column by the values that it holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

from quatrain.tasks.text2sql.asking.english import ALIAS_WORDS, COMMON_WORDS, SHORT_FORMS, aliases
from quatrain.tasks.text2sql.asking.lexicon import question_words
from quatrain.tasks.text2sql.dates import with_days
from quatrain.tasks.text2sql.naming import plural, singular
from quatrain.tasks.text2sql.opening import connect
from quatrain.tasks.text2sql.schema import DATE, Column, Schema
from quatrain.tasks.text2sql.values import literal, usable

MOST_HINTS = 4
"""Columns named for one value, and values named in one question."""
MOST_VALUES = 20_000
"""Different values of one column that are looked for."""
LONGEST_QUESTION = 2000
"""Characters of a question that are read."""
LONGEST = 9
"""Words of the longest value that is looked for."""
_TOKEN = re.compile(
    r"\"[^\"]*\"|\d{4}-\d\d(?:-\d\d)?(?!\d)|\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’.&-][^\W_]+)*|[<>]=?|[%#$€&+*=]|'[^']+'",
    re.UNICODE,
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*\Z")
_NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "dozen": 12}
_BEFORE_NUMBERS = frozenset("than least most exactly only over just under below above".split())
_FACTORS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "k": 1000, "m": 10**6}


@dataclass(frozen=True, slots=True)
class Hint:
    """A value of the database that a question names, in the columns that hold it."""

    columns: tuple[Column, ...]
    value: str

    def text(self) -> str:
        """`cities.name = 'Paris'`, for every column that holds it."""
        return " or ".join(f"{column.full} = {literal(self.value)}" for column in self.columns)


@dataclass(frozen=True, slots=True)
class Linked:
    """A question as the model reads it. `unknown` are its words that neither the database nor English knows."""

    text: str
    hints: tuple[Hint, ...]
    unknown: tuple[str, ...]
    repaired: tuple[tuple[str, str], ...] = ()

    @property
    def prompt(self) -> str:
        """The question, and the values found in it."""
        return " | ".join([self.text, *(hint.text() for hint in self.hints)])


_COMPARED = re.compile(r"([\w.\"]+) (=|!=|IN \(|LIKE) ?'((?:[^']|'')*)'(?:, '((?:[^']|'')*)')?")
_TWICE = re.compile(r"([\w.\"]+) = '((?:[^']|'')*)' AND \1 = '((?:[^']|'')*)'")
_PLAIN_NUMBER = re.compile(r"('(?:[^']|'')*')|(?<![\w.'])(LIMIT |OFFSET )?(\d+(?:\.\d+)?)(?![\w.'])")
_DAY = re.compile(r"'(\d{4})((?:-\d\d){0,2})'")


def snapped(linked: Linked, sql: str) -> str:
    """The statement with its values, numbers and dates spelled as the question's: a small model copies with slips.

    A text compared with a column that is neither a value found in the question for that column nor a day is replaced by
    the first such value that the statement does not use; so is a condition that stands there twice. Two values of one
    column joined by AND, which no row has, become one of the two.
    """
    return _with_own_dates(linked, _with_own_numbers(linked, _with_own_values(linked, sql)))


def _with_own_values(linked: Linked, sql: str) -> str:
    values = {hint.value for hint in linked.hints}
    conditions: set[tuple[str, str]] = set()

    def mended(match: re.Match[str]) -> str:
        column, operator = match[1].replace('"', ""), match[2]
        mine = [
            hint.value
            for hint in linked.hints
            if any(column in (each.name, f"{each.table}.{each.name}") for each in hint.columns)
        ]
        texts = [text.replace("''", "'") for text in (match[3], match[4]) if text is not None]
        strange = [text for text in texts if text in values and text not in mine]
        if operator == "IN (" and len(strange) == 1 and len(texts) == 2 and mine:
            own = next((text for text in texts if text in mine), mine[0])
            other = next(hint for hint in linked.hints if hint.value == strange[0])
            name = other.columns[0].full if "." in match[1] else other.columns[0].sql
            return f"({match[1]} = {literal(own)} AND {name} = {literal(strange[0])}"  # the bracket of IN stays open
        if operator == "LIKE" or not mine or all(re.fullmatch(r"[\d-]+", text) for text in texts):
            return match[0]
        free = [value for value in mine if value not in texts]
        used: list[str] = []
        for text in texts:
            again = operator == "=" and (column, text) in conditions and literal(text)[1:-1] not in sql[match.end() :]
            if (text not in values or text in used or again) and free:
                text = free.pop(0)
            used.append(text)
        conditions.add((column, used[0]))
        inside = ", ".join(literal(text) for text in used)
        return f"{match[1]} {operator}{inside}" if operator == "IN (" else f"{match[1]} {operator} {inside}"

    sql = _COMPARED.sub(mended, sql)
    unused = [hint for hint in linked.hints if literal(hint.value) not in sql]

    def either(match: re.Match[str]) -> str:
        if match[2] != match[3]:
            return f"{match[1]} IN ('{match[2]}', '{match[3]}')"
        # The same condition twice: the second one is of a value that the statement leaves out.
        for hint in unused:
            joined = "." in match[1]
            for column in hint.columns:
                if (joined and re.search(rf"\b{re.escape(column.table)}\b", sql)) or column.full == match[1]:
                    return f"{match[1]} = '{match[2]}' AND {column.full} = {literal(hint.value)}"
                if not joined and f"FROM {column.full.split('.')[0]}" in sql and column.sql != match[1]:
                    return f"{match[1]} = '{match[2]}' AND {column.sql} = {literal(hint.value)}"
        return match[0]

    return _TWICE.sub(either, sql)


def numbers_of(linked: Linked) -> list[str]:
    """The numbers of a question in their order, without those inside of values and without days."""
    text = linked.text
    for hint in linked.hints:
        text = text.replace(hint.value, " ")
    return [token for token in text.split() if _NUMBER.match(token)]


def _with_own_numbers(linked: Linked, sql: str) -> str:
    numbers = numbers_of(linked)
    used = {match[3] for match in _PLAIN_NUMBER.finditer(sql) if match[3]}
    used |= {match[1] for match in _DAY.finditer(sql)}
    free = [number for number in numbers if number not in used]

    def mended(match: re.Match[str]) -> str:
        number = match[3]
        if match[1] or number in numbers or number in ("0", "1", "100.0") or match[2] == "OFFSET " or not free:
            return match[0]
        before, after = sql[: match.start()].rstrip()[-1:], sql[match.end() :].lstrip()[:1]
        is_factor = before in ("*", "/") or after in ("*", "/")  # of a share: 1.0 * a / b, 100 * a / b
        is_precision = before == "," and after == ")" and len(number) == 1 and "ROUND(" in sql
        if is_factor or is_precision:
            return match[0]
        best = min(free, key=lambda other: (_distance(other, number, 9), free.index(other)))
        free.remove(best)
        return f"{match[2] or ''}{best}"

    return _PLAIN_NUMBER.sub(mended, sql) if free else sql


def _with_own_dates(linked: Linked, sql: str) -> str:
    days = [token for token in linked.text.split() if re.fullmatch(r"\d{4}(-\d\d){0,2}", token)]
    written = {match[0][1:-1] for match in _DAY.finditer(sql)}
    years = {day[:4] for day in days}
    free = [day for day in days if not any(text.startswith(day) for text in written)]

    def mended(match: re.Match[str]) -> str:
        text = match[1] + match[2]
        if not free or (match[1] in years and len(free[0]) <= 4) or any(text.startswith(day) for day in days):
            return match[0]
        day = free[0]
        if len(day) == len(text):
            free.pop(0)
            return f"'{day}'"
        return f"'{day[:4]}{match[2]}'" if len(day) == 4 else match[0]

    return _DAY.sub(mended, sql) if free else sql


def disguised(linked: Linked, sql: str, swap: Callable[[Hint], str | None]) -> tuple[str, str]:
    """The prompt and the SQL with other values in the place of those that were found.

    A model that sees the same values again and again learns them by heart; one that sees invented values must copy.
    `swap` gives the new value of a hint, or None to keep it.
    """
    text, hints = linked.text, list(linked.hints)
    for place, hint in enumerate(hints):
        if literal(hint.value)[1:-1] not in sql:
            continue
        new = swap(hint)
        if (
            new is None
            or hint.value not in text
            or any(hint.value in other.value for other in hints if other is not hint)
        ):
            continue
        text = text.replace(hint.value, new)
        inside, other = literal(hint.value)[1:-1], literal(new)[1:-1]
        for mark in ("'{}'", "'%{}%'", "'{}%'"):
            sql = sql.replace(mark.format(inside), mark.format(other))
        hints[place] = Hint(hint.columns, new)
    return Linked(text, tuple(hints), ()).prompt, sql


@lru_cache(maxsize=100_000)
def plain(text: str) -> str:
    """Lower case without accents."""
    folded = unicodedata.normalize("NFKD", text.casefold().replace("’", "'"))
    return "".join(letter for letter in folded if not unicodedata.combining(letter))


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """A word without the endings of plurals, verbs and participles, so that "cancelled" finds "canceled"."""
    word = plain(word)
    if word.endswith("'s"):
        word = word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeious":
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def words_of(text: str) -> list[str]:
    """The words of a value, as `tokens` would cut them from a question."""
    found = _TOKEN.findall(text.replace("’", "'").replace("&", " and ").replace("-", " "))
    words = [plain(token).strip("\"'") for token in found if any(map(str.isalnum, token))]
    return [str(_NUMBERS[word]) if word in _NUMBERS and len(words) > 1 else word for word in words]


class Linker:
    """Finds the values of a database in questions. `words` are those that questions use besides its names."""

    def __init__(self, schema: Schema, values: Iterable[tuple[Column, Iterable[str]]], words: Iterable[str] = ()):
        self.schema = schema
        days = [str(column.high) for table in schema.tables for column in table.columns if _tells_time(column)]
        self.today = max(days, default=None)
        """The last day that the database knows, from which "last year" is counted."""
        self._values: dict[tuple[str, ...], dict[str, list[Column]]] = {}
        self._longest = 1
        known: set[str] = set(COMMON_WORDS) | set(_NUMBERS) | set(_FACTORS) | set(SHORT_FORMS)
        value_words: set[str] = set()
        for column, texts in values:
            for text in texts:
                parts = words_of(text)
                if not parts or len(parts) > LONGEST or len(text) > 60:
                    continue
                key = tuple(stem(part) for part in parts)
                if len(key) > 1 and key[0] == "the":
                    key = key[1:]
                columns = self._values.setdefault(key, {}).setdefault(text, [])
                if column not in columns:
                    columns.append(column)
                self._longest = max(self._longest, len(key))
                value_words.update(parts)
        for value, names in aliases(text for texts in self._values.values() for text in texts).items():
            columns = next(texts[value] for texts in self._values.values() if value in texts)
            for name in names:
                key = tuple(stem(part) for part in words_of(name))
                if key not in self._values:
                    self._values[key] = {value: columns}
                    value_words.update(part for part in words_of(name) if len(part) > 3)
        for table in schema.tables:
            for label in (table.label, *(column.label for column in table.columns)):
                known.update(label.split())
        for word in words:
            known.update(words_of(word))
        self._starts = {key[0] for key in self._values}
        self._english = known
        self._known = known | value_words
        self._stems = {stem(word) for word in self._known}
        self._deletes: dict[str, list[str]] = {}
        for word in sorted(self._known):
            if len(word) >= 4:
                for cut in _deletes(word):
                    self._deletes.setdefault(cut, []).append(word)

    @classmethod
    def of(cls, schema: Schema) -> Linker:
        """The linker of a database: all values of its text columns, at most `MOST_VALUES` of each."""
        found = []
        with closing(connect(schema.path)) as connection:
            for table in schema.tables:
                for column in table.columns:
                    if column.role in ("text", "category") and column.asked:
                        rows = connection.execute(
                            f"SELECT DISTINCT {column.sql} FROM {table.sql} WHERE typeof({column.sql}) = 'text' "
                            f"LIMIT {MOST_VALUES}"
                        )
                        found.append((column, [row[0] for row in rows if usable(row[0])]))
        return cls(schema, found, question_words())

    def link(self, question: str) -> Linked:
        """The question with its values named; see the module."""
        tokens, unknown, repaired = self._tokens(question)
        text: list[str] = []
        hints: list[Hint] = []
        place = 0
        while place < len(tokens):
            match = self._match(tokens, place)
            if match is None:
                token = tokens[place]
                # A word that is no English may be a value, or a part of one: it keeps its letters.
                text.append(token.lower() if plain(token) in self._english else token)
                place += 1
                continue
            length, found = match
            # A value that is written as an ordinary English word stays one, and is a hint as well.
            for value, columns in found[:2]:
                hint = Hint(tuple(columns[:MOST_HINTS]), value)
                if hint not in hints and len(hints) < MOST_HINTS:
                    hints.append(hint)
            text.append(found[0][0])
            if text[-1].lower().startswith("the ") and len(text) > 1 and text[-2] == "the":
                text.pop(-2)
            place += length
        return Linked(" ".join(text), tuple(hints), tuple(unknown), tuple(repaired))

    def _match(self, tokens: Sequence[str], place: int) -> tuple[int, list[tuple[str, list[Column]]]] | None:
        first = tokens[place]
        unlike = _NUMBER.match(first) is not None or stem(first.strip("\"'")) not in self._starts
        if unlike and not first.startswith('"'):
            return None
        if first.startswith('"'):
            key = tuple(stem(part) for part in words_of(first.strip('"')))
            found = self._values.get(key)
            return (1, self._ranked(found, first)) if found else None
        most = min(self._longest, len(tokens) - place)
        key = tuple(stem(token.strip("\"'")) for token in tokens[place : place + most])
        for length in range(most, 0, -1):
            found = self._values.get(key[:length])
            if found is None:
                continue
            word = plain(first)
            # "order", "in" and the like are words of the question, also where a value is called so.
            if length == 1 and (word in _FUNCTION or len(word) < 2):
                continue
            # "shipping" of "shipping cost" is no "shipped": a word of the schema or of English is itself.
            same = any(plain(value) in (word, plural(word), singular(word)) for value in found)
            if length == 1 and word in self._english and not same and word not in ALIAS_WORDS:
                continue
            return length, self._ranked(found, " ".join(tokens[place : place + length]))
        return None

    @staticmethod
    def _ranked(found: dict[str, list[Column]], written: str) -> list[tuple[str, list[Column]]]:
        """The values with these words, those written like the question first."""
        order = sorted(
            found.items(),
            key=lambda item: (item[0] != written, plain(item[0]) != plain(written), len(item[0]), item[0]),
        )
        return [item for item in order if plain(item[0]) == plain(order[0][0])]

    def _tokens(self, question: str) -> tuple[list[str], list[str], list[tuple[str, str]]]:
        tokens: list[str] = []
        unknown: list[str] = []
        repaired: list[tuple[str, str]] = []
        for token in _TOKEN.findall(_readable(question, self.today)):
            low = token.lower()
            if token[0] in "\"'" and len(token) > 2:
                tokens.append('"' + token[1:-1].strip() + '"')
                continue
            if _NUMBER.match(token):
                tokens.append(_number(token))
                continue
            if low in SHORT_FORMS and (stem(low),) not in self._values:
                tokens += SHORT_FORMS[low].split()
                continue
            if low in _NUMBERS and low != "one":
                tokens.append(str(_NUMBERS[low]))
                continue
            if low in _FACTORS and tokens and _NUMBER.match(tokens[-1].replace("one", "1")):
                tokens[-1] = _shown(float(tokens[-1].replace("one", "1")) * _FACTORS[low])
                continue
            if low == "one" and tokens and tokens[-1].lower() in _BEFORE_NUMBERS:
                tokens.append("1")
                continue
            if low in ("hundred", "thousand", "million"):
                if tokens and tokens[-1].lower() == "a":
                    tokens.pop()
                tokens.append(str(_FACTORS[low]))
                continue
            better = self._repair(token)
            if better is None:
                if not any(map(str.isdigit, token)):
                    unknown.append(token)
            elif better != plain(token):
                repaired.append((token, better))
                token = better
            tokens.append(token)
        return tokens, unknown, repaired

    def _repair(self, token: str) -> str | None:
        """The word itself where it is known, the only near known word, or None."""
        word = plain(token)
        if word in self._known or stem(word) in self._stems or len(word) < 4:
            return word
        if any(part in self._known for part in re.split(r"['-]", word) if len(part) > 2):
            return word
        near: dict[str, int] = {}
        for cut in _deletes(word):
            for other in self._deletes.get(cut, ()):
                # Slips leave the first letter in its place, or change it with the second.
                begins = other[0] == word[0] or (other[0], other[1]) == (word[1], word[0])
                if begins and abs(len(other) - len(word)) <= 2 and other not in near:
                    near[other] = _distance(word, other, 2 if len(word) > 6 else 1)
        limit = 2 if len(word) > 6 else 1
        good = sorted(
            (distance, other not in self._english, other) for other, distance in near.items() if distance <= limit
        )
        return good[0][2] if good else None


def _tells_time(column: Column) -> bool:
    return column.role == "date" and "birth" not in column.label and DATE.match(str(column.high)) is not None


def _readable(question: str, today: str | None) -> str:
    """The question with straight quotes and without hyphens inside words; dates keep theirs."""
    question = question[:LONGEST_QUESTION].replace("’", "'").replace("“", '"').replace("”", '"').replace("&", " and ")
    question = re.sub(r"\bw/o\b", "without", re.sub(r"\be-?mail", "email", question, flags=re.I), flags=re.I)
    question = re.sub(r"(?<=\d)'?s\b", "", question)
    return re.sub(r"(?<=[^\W\d_])-(?=\w)", " ", with_days(question, today))


def _deletes(word: str) -> set[str]:
    """The word, and the word without any one of its letters (Garbe's symmetric deletion, SymSpell 2012)."""
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}


def _distance(first: str, second: str, most: int) -> int:
    """The Damerau-Levenshtein distance (neighbours swapped count one), or `most` + 1 where it is longer."""
    if abs(len(first) - len(second)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first, 1):
        before, last, row = row, before, [place]
        for other, target in enumerate(second, 1):
            cost = min(before[other] + 1, row[other - 1] + 1, before[other - 1] + (letter != target))
            if place > 1 and other > 1 and letter == second[other - 2] and first[place - 2] == target:
                cost = min(cost, last[other - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return row[-1]


def _number(token: str) -> str:
    """A number without separators of thousands: "1,500" is 1500, "3.50" is 3.5."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", token):
        token = token.replace(",", "")
    elif re.fullmatch(r"\d{1,3}(\.\d{3})+", token) and token.count(".") > 1:
        token = token.replace(".", "")
    elif re.fullmatch(r"\d+,\d{1,2}", token):
        token = token.replace(",", ".")
    if re.fullmatch(r"\d+\.\d+", token):
        return _shown(float(token))
    return token


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.4f}".rstrip("0")


_FUNCTION = frozenset(
    "a an the of in on at by for from to with and or not no is are was were do does did have has had who what which "
    "where when how many much all any each every per than more less most least over under above below between after "
    "before since until there our we i you me us it its their they them that this these those please show list give "
    "tell find get name names number count total average sum first last top best new old order orders".split()
)
