"""Exact match and F1 of answers, as in SQuAD's official script.

Rajpurkar et al. 2016 (arXiv 1606.05250) and, for questions without answer, 2018 (arXiv 1806.03822).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from quatrain.evaluation.metrics.checks import check_lengths, check_texts

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """An answer in lower case, without punctuation, articles and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """The F1 of the words of two answers, from 0 to 1; if one is empty, 1 if both are."""
    one, other = normalized(prediction).split(), normalized(reference).split()
    if not one or not other:
        return float(one == other)
    both = sum((Counter(one) & Counter(other)).values())
    return 2 * both / (len(one) + len(other))


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """{"exact_match", "f1"} in percent; if some questions have no answer, also with the prefixes `answered_` and
    `unanswered_`.

    `references` are the answers of each question; the best match counts. For an empty list the correct prediction is
    "". Raises InputError for lists that are empty or differ in length, and for values that are not texts.
    """
    check_lengths(predictions, references, "SQuAD")
    check_texts(predictions, "prediction", "SQuAD")
    rows = []
    for number, (prediction, answers) in enumerate(zip(predictions, references, strict=True), 1):
        accepted = [answers] if isinstance(answers, str) else list(answers)
        check_texts(accepted, f"question {number}: answer", "SQuAD")
        # An answer of articles and punctuation alone counts as no answer.
        accepted = [answer for answer in accepted if normalized(answer)] or [""]
        exact = max(float(normalized(prediction) == normalized(answer)) for answer in accepted)
        rows.append((accepted != [""], exact, max(token_f1(prediction, answer) for answer in accepted)))
    scores = _means([row[1:] for row in rows], "")
    kinds = [[row[1:] for row in rows if row[0] is answered] for answered in (True, False)]
    if all(kinds):
        scores |= _means(kinds[0], "answered_") | _means(kinds[1], "unanswered_")
    return scores


def _means(rows: Sequence[tuple[float, ...]], prefix: str) -> dict[str, float]:
    exact, shared = (100 * sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {f"{prefix}exact_match": exact, f"{prefix}f1": shared}
