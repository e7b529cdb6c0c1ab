"""What a question says in plain words, and its SQL must show: numbers, dates, negation, shares, averages, groups.

A small model sometimes answers another question that is asked more often: "customers without email" with all emails.
Such an answer contradicts the words of the question, which rules notice without a model, as the reranking of candidates
by their agreement with the question does in the literature (Kelkar et al. 2020, Bertrand-DR, arXiv 2002.00557).
"""

from __future__ import annotations

import re

from quatrain.tasks.text2sql.linking import Linked, numbers_of
from quatrain.tasks.text2sql.schema import Schema
from quatrain.tasks.text2sql.values import literal

_COMPARING = r"(?:more|less|later|earlier|only|higher|lower|fewer|before|after|over|above|below|under|greater|smaller)"
_NEGATION = re.compile(
    rf"\b(?:not|no|without|except|excluding|never|nobody|non|outside|missing|lacking)\b(?! (?:[\w]+ )?{_COMPARING}\b)",
    re.I,
)
_NEGATED = re.compile(r"!=|<>|\bNOT\b|IS NULL|= 0\b|<|>=")
_NOT_EQUAL = re.compile(r"!=|<>")
_OTHERWISE = re.compile(
    r"\b(?:not|no|without|except|excluding|non|outside|other|apart|but|besides|don|rather|neither|nor|than)\b", re.I
)
_BELOW = re.compile(
    r"(?<!not )(?<!no )\b(?:under|below|(?:less|fewer|cheaper|lower|smaller) than|at most|up to) (?:\w+ )?\d",
    re.I,
)
_ABOVE = re.compile(
    r"(?<!not )(?<!no )\b(?:over|above|(?:more|higher|greater|larger|bigger) than|at least|exceeding) (?:\w+ )?\d",
    re.I,
)
_SHARE = re.compile(r"\b(?:percent|percentage|share|proportion|fraction)\b", re.I)
_AVERAGE = re.compile(r"\b(?:average|mean|typical|typically)\b", re.I)
_PER = re.compile(r"\b(?:per|for each|for every|in each|in every|does each|does every)\b", re.I)
_DENIAL = (
    r"(?:not|no|non|without|except|excluding|outside|(?:other|rather) than|apart from|but|never|neither|nor|besides"
    r"|instead of)"
)
_YEARS = re.compile(r"\d{4}(?:-\d\d){0,2}")


_PRICE = re.compile(r"\b(?:euros?|dollars?|prices?|priced|costs?|costing|cheap\w*|expensive|pricey|priciest)\b", re.I)
_STOCK = re.compile(r"\b(?:stock|stocked|inventory|sold out|ran out|unavailable|left|warehouse)\b", re.I)
_RATING = re.compile(r"\b(?:rated|ratings?|stars|unrated)\b", re.I)
Topics = tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]


def topics_of(schema: Schema) -> Topics:
    """Words that only some columns of this database answer to, each with those columns."""
    found = []
    for words, labels in (
        (_PRICE, ("price", "cost", "amount", "total", "value")),
        (_STOCK, ("stock", "inventory")),
        (_RATING, ("rating", "stars")),
    ):
        columns = [c for table in schema.tables for c in table.columns if c.label.split()[-1:] and c.is_number]
        names = {column.name for column in columns if column.label.split()[-1] in labels}
        if names:
            found.append((words, re.compile("|".join(map(re.escape, sorted(names))), re.I)))
    return tuple(found)


def contradictions(linked: Linked, sql: str, topics: Topics = ()) -> int:
    """How many things the question says that the statement does not show, or the other way round."""
    text = linked.text
    for hint in linked.hints:
        text = text.replace(hint.value, "VALUE")
    found = sum(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", sql) is None for number in numbers_of(linked))
    found += sum("-" in word and _YEARS.fullmatch(word) is not None and word not in sql for word in text.split())
    found += bool(_NEGATION.search(text)) and not _NEGATED.search(sql)
    found += bool(_NOT_EQUAL.search(sql)) and not _OTHERWISE.search(text)
    found += bool(_BELOW.search(text)) and not re.search(r"<|BETWEEN", sql)
    found += bool(_ABOVE.search(text)) and not re.search(r">|BETWEEN", sql)
    found += bool(_SHARE.search(text)) != ("100.0 *" in sql)
    found += bool(_AVERAGE.search(text)) != ("AVG(" in sql)
    found += bool(_PER.search(text)) and "GROUP BY" not in sql
    found += sum(bool(words.search(text)) and not columns.search(sql) for words, columns in topics)
    conditions = re.split(r" AND | WHERE ", sql)
    found += len(conditions) - len(set(conditions))
    years = re.findall(r"\b(?:in|since|during|before|after|year|until) (\d{4})\b", text)
    found += sum(re.search(rf"_id = {year}\b", sql) is not None for year in years)
    return found + sum(_is_turned(linked.text, hint.value, sql) for hint in linked.hints)


def _is_turned(text: str, value: str, sql: str) -> bool:
    """Whether the statement wants what the question excludes, or excludes what it wants."""
    place, quoted = text.find(value), re.escape(literal(value))
    if place < 0:
        return False
    before = text[:place]
    if re.search(rf"(?:!=|<>) {quoted}", sql):
        return re.search(rf"\b{_DENIAL}\b", before, re.I) is None
    plain = re.search(rf"(?<!!)= {quoted}", sql) and "NOT IN (" not in sql
    return bool(plain) and re.search(rf"\b{_DENIAL}(?: \w+)?(?: the)? $", before, re.I) is not None
