"""Exact match and F1 of answers, as SQuAD's official script counts them.

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
    """An answer in lower case, without punctuation, articles and spaces too many."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """The F1 of the words that an answer shares with a reference, 0 to 1; with a side empty 1 where both are."""
    one, other = normalized(prediction).split(), normalized(reference).split()
    if not one or not other:
        return float(one == other)
    both = sum((Counter(one) & Counter(other)).values())
    return 2 * both / (len(one) + len(other))


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """{"exact_match", "f1"} in percent, and where some questions have no answer the same for both kinds apart.

    `references` are each question's answers, of which the best fitting counts; an empty list means that there is
    none, and the right prediction is "". Raises InputError for no or uneven input, or what is no text.
    """
    check_lengths(predictions, references, "SQuAD")
    check_texts(predictions, "prediction", "SQuAD")
    rows = []
    for number, (prediction, answers) in enumerate(zip(predictions, references, strict=True), 1):
        wanted = [answers] if isinstance(answers, str) else list(answers)
        check_texts(wanted, f"question {number}: answer", "SQuAD")
        # An answer that is nothing but articles and signs counts as none.
        wanted = [answer for answer in wanted if normalized(answer)] or [""]
        exact = max(float(normalized(prediction) == normalized(answer)) for answer in wanted)
        rows.append((wanted != [""], exact, max(token_f1(prediction, answer) for answer in wanted)))
    found = _means([row[1:] for row in rows], "")
    kinds = [[row[1:] for row in rows if row[0] is answered] for answered in (True, False)]
    if all(kinds):
        found |= _means(kinds[0], "answered_") | _means(kinds[1], "unanswered_")
    return found


def _means(rows: Sequence[tuple[float, ...]], prefix: str) -> dict[str, float]:
    exact, shared = (100 * sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {f"{prefix}exact_match": exact, f"{prefix}f1": shared}
