"""Whether predicted SQL answers the question: both statements are run and their answers compared.

Answers match when they hold the same rows as often (in the same order when the gold statement orders them), names of
columns aside, numbers with decimals up to a small relative difference; whole numbers, texts and blobs only when they
are equal. An empty gold answer (no rows, or nothing but NULL and 0) is also what most wrong values give, so there the
two statements themselves must agree up to spacing, case of keywords and a final semicolon.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from quatrain.tasks.text2sql.sandbox import Connection, Result

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[^\s'\"]+")
_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_GOLD_CACHE = 4096
_GOLD_BYTES = 64_000_000
_JUDGED_ROWS = 20_000
_CHOICES = 120
"""The most choices of columns that are tried."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the prediction is right, and in `detail` why it is or is not.

    `judged` is False where the reference itself fails, so that the prediction cannot be judged.
    """

    correct: bool
    detail: str
    judged: bool = True


def normalise(sql: str) -> str:
    """The statement without differences that never matter: spaces, case outside quotes, the final semicolon."""
    pieces = [
        piece if piece[0] in "'\"" else piece.lower() for piece in _TOKEN.findall(sql.strip().rstrip(";").rstrip())
    ]
    text = " ".join(pieces)
    return re.sub(r"\s*([(),=<>!]+)\s*", r" \1 ", text) if "'" not in text and '"' not in text else _spaced(pieces)


def _spaced(pieces: list[str]) -> str:
    return " ".join(
        piece if piece[0] in "'\"" else " ".join(re.sub(r"([(),]|[=<>!]+)", r" \1 ", piece).split()) for piece in pieces
    )


def is_empty(result: Result) -> bool:
    """Whether an answer is empty: an error, no rows, or only NULL and 0."""
    return result.error is not None or all(cell is None or cell == 0 for row in result.rows for cell in row)


def execution_match(connection: Connection, gold_sql: str, predicted_sql: str) -> Verdict:
    """Judge `predicted_sql` by comparing its result with that of `gold_sql`, which is cached."""
    same = normalise(gold_sql) == normalise(predicted_sql)
    gold = _gold(connection, gold_sql)
    if gold.error is not None:
        return Verdict(False, f"the reference itself fails: {gold.error}", judged=False)
    if same:
        return Verdict(True, "the same statement")
    predicted = connection.execute(predicted_sql, rows=_JUDGED_ROWS, exact=True)
    if predicted.error is not None:
        return Verdict(False, predicted.error)
    if is_empty(gold):
        return Verdict(False, "the reference returns nothing, and the statement differs")
    if gold.truncated or predicted.truncated:
        if gold.truncated != predicted.truncated:
            return Verdict(False, "one answer has far more rows")
        return Verdict(False, "both answers are too long to compare, and the statements differ")
    if len(gold.rows) != len(predicted.rows):
        return Verdict(False, f"{len(predicted.rows)} rows instead of {len(gold.rows)}")
    if gold.rows and len(gold.rows[0]) != len(predicted.rows[0]):
        return Verdict(False, f"{len(predicted.rows[0])} columns instead of {len(gold.rows[0])}")
    ordered = _ORDERED.search(_QUOTED.sub("''", gold_sql)) is not None
    if _equal(gold.rows, predicted.rows, ordered):
        return Verdict(True, "the same answer")
    if ordered and _equal(gold.rows, predicted.rows, False):
        return Verdict(False, "the same rows in another order")
    return Verdict(False, "other values")


def accepted_match(
    connection: Connection, accepted: Sequence[str], predicted_sql: str, *, ordered: bool, extra: bool
) -> Verdict:
    """Judge `predicted_sql` against several statements, each of which is a right answer.

    Columns may come in any order. Rows must come in the order of an accepted answer only with `ordered`. With `extra`
    the prediction may have further columns. An answer of nothing but NULL and 0 is matched by its statement alone.
    """
    golds = [(sql, gold) for sql in accepted if (gold := _gold(connection, sql)).error is None and not gold.truncated]
    if not golds:
        error = _gold(connection, accepted[0]).error or "the answer is too long to compare"
        return Verdict(False, f"the reference itself fails: {error}", judged=False)
    if any(normalise(sql) == normalise(predicted_sql) for sql, _ in golds):
        return Verdict(True, "the same statement")
    predicted = connection.execute(predicted_sql, rows=_JUDGED_ROWS, exact=True)
    if predicted.error is not None:
        return Verdict(False, predicted.error)
    answers = [gold for _, gold in golds if not is_empty(gold)]
    if any(_holds(gold.rows, predicted.rows, ordered, extra) for gold in answers):
        return Verdict(True, "the same answer")
    if ordered and any(_holds(gold.rows, predicted.rows, False, extra) for gold in answers):
        return Verdict(False, "the same rows in another order")
    counts = sorted({len(gold.rows) for _, gold in golds})
    if len(predicted.rows) not in counts:
        return Verdict(False, f"{len(predicted.rows)} rows instead of {' or '.join(map(str, counts))}")
    return Verdict(False, "other columns or values")


def has_rows(connection: Connection, accepted: Sequence[str]) -> bool:
    """Whether one of the accepted statements returns rows."""
    return any(_gold(connection, sql).rows for sql in accepted)


def _holds(
    gold: tuple[tuple[Any, ...], ...], predicted: tuple[tuple[Any, ...], ...], ordered: bool, extra: bool
) -> bool:
    """Whether some choice and order of the predicted columns gives the gold rows."""
    width = len(gold[0])
    if len(gold) != len(predicted) or len(predicted[0]) < width or (len(predicted[0]) > width and not extra):
        return False
    columns = range(len(predicted[0]))
    candidates = [
        [column for column in columns if _equal(_project(gold, (place,)), _project(predicted, (column,)), ordered)]
        for place in range(width)
    ]
    choices = (choice for choice in product(*candidates) if len(set(choice)) == width)
    return any(_equal(gold, _project(predicted, choice), ordered) for choice in islice(choices, _CHOICES))


def _project(rows: tuple[tuple[Any, ...], ...], columns: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row[column] for column in columns) for row in rows)


def reference_error(connection: Connection, gold_sql: str) -> str | None:
    """The error of a reference on this database; None if it runs."""
    return _gold(connection, gold_sql).error


def _gold(connection: Connection, sql: str) -> Result:
    cached = connection.gold.get(sql)
    if cached is None:
        cached = connection.execute(sql, rows=_JUDGED_ROWS, exact=True)
        if len(connection.gold) >= _GOLD_CACHE or connection.gold_size > _GOLD_BYTES:
            connection.gold.clear()
            connection.gold_size = 0
        if len(cached.rows) <= 1000:
            connection.gold[sql] = cached
            connection.gold_size += cached.size + len(sql)
    return cached


def _equal(gold: tuple[tuple[Any, ...], ...], predicted: tuple[tuple[Any, ...], ...], ordered: bool) -> bool:
    if gold == predicted or (not ordered and _counted(gold) == _counted(predicted)):
        return True
    if not ordered:
        gold, predicted = tuple(sorted(gold, key=_rank)), tuple(sorted(predicted, key=_rank))
    return all(
        _same(first, second)
        for left, right in zip(gold, predicted, strict=True)
        for first, second in zip(left, right, strict=True)
    )


def _counted(rows: tuple[tuple[Any, ...], ...]) -> Counter[tuple[Any, ...]]:
    return Counter(rows)


def _rank(row: tuple[Any, ...]) -> tuple[tuple[tuple[int, Any], ...], tuple[tuple[int, Any], ...]]:
    # Round before sorting, because sums in another order differ in the last digits.
    rounded = tuple(
        (0, 0)
        if cell is None
        else (1, float(f"{cell:.6g}"))
        if isinstance(cell, (int, float))
        else (2, cell)
        if isinstance(cell, str)
        else (3, bytes(cell))
        for cell in row
    )
    return rounded, tuple((1, cell) if isinstance(cell, int) else (0, 0) for cell in row)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float) or isinstance(second, float):
        numbers = isinstance(first, (int, float)) and isinstance(second, (int, float))
        return numbers and math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)
    # Whole numbers are counts or keys and must be equal, however large. A text never equals a number.
    return type(first) is type(second) and bool(first == second)
