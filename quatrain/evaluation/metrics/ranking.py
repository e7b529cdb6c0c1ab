"""Measures of rankings: nDCG, average precision, reciprocal rank, recall, precision, as trec_eval counts them.

Järvelin & Kekäläinen 2002 (nDCG); Voorhees 1999 (reciprocal rank). A relevance of 0 or less is not relevant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

DEPTH = 1000
"""Documents of a ranking that count, as in trec_eval."""


def ranked(scores: Mapping[str, float], depth: int = DEPTH) -> list[str]:
    """The ids of the documents with the highest scores; equal scores by id, the last first, as trec_eval does."""
    return sorted(scores, key=lambda each: (scores[each], each), reverse=True)[:depth]


def ndcg(ranking: Sequence[str], relevance: Mapping[str, int], depth: int = 10, *, exponential: bool = False) -> float:
    """Discounted gain of the first `depth` documents, of the best possible one; 0 without relevant documents.

    The gain is the relevance (trec_eval), or 2 ** relevance - 1 if `exponential` (Burges et al. 2005).
    """
    best = sorted((value for value in relevance.values() if value > 0), reverse=True)
    found = [relevance.get(each, 0) for each in ranking[:depth]]
    ideal = _discounted(best[:depth], exponential)
    return _discounted(found, exponential) / ideal if ideal else 0.0


def _discounted(gains: Sequence[int], exponential: bool) -> float:
    values = (2.0**gain - 1 if exponential else float(max(gain, 0)) for gain in gains)
    return sum(value / math.log2(place + 2) for place, value in enumerate(values))


def average_precision(ranking: Sequence[str], relevance: Mapping[str, int]) -> float:
    """The mean of the precision at each relevant document; those that are not found count 0."""
    relevant = {each for each, value in relevance.items() if value > 0}
    hits, total = 0, 0.0
    for place, each in enumerate(ranking, 1):
        if each in relevant:
            hits += 1
            total += hits / place
    return total / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], relevance: Mapping[str, int], depth: int | None = None) -> float:
    """1 / the place of the first relevant document, 0 if none is found (among the first `depth`)."""
    places = (place for place, each in enumerate(ranking[:depth], 1) if relevance.get(each, 0) > 0)
    first = next(places, None)
    return 1 / first if first else 0.0


def recall(ranking: Sequence[str], relevance: Mapping[str, int], depth: int = 100) -> float:
    """The share of the relevant documents that is among the first `depth`."""
    relevant = {each for each, value in relevance.items() if value > 0}
    return len(relevant & set(ranking[:depth])) / len(relevant) if relevant else 0.0


def precision(ranking: Sequence[str], relevance: Mapping[str, int], depth: int = 10) -> float:
    """The share of the first `depth` documents that is relevant."""
    return sum(relevance.get(each, 0) > 0 for each in ranking[:depth]) / depth
