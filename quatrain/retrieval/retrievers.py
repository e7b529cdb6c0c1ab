"""Ways to rank the chunks of an index for a question: words (BM25), vectors (dense), both (hybrid), and feedback.

Hybrid ranking adds reciprocal ranks (Cormack et al. 2009, Reciprocal Rank Fusion): no scores are compared that have no
common scale. Feedback moves the vector of the question towards the first passages (Rocchio 1971): it helps questions
that a collection answers in many places, and needs a second search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from quatrain.retrieval.bm25 import Bm25
from quatrain.retrieval.encoders import Encoder, unit
from quatrain.retrieval.stores import Store

Ranking = list[tuple[int, float]]
"""Ids of chunks with their scores, the best first."""
FUSION = 60
"""The constant of reciprocal rank fusion: 1 / (60 + rank)."""
FEEDBACK = 5
"""Passages that feedback reads."""
DEEPEST = 1000
"""How far each ranking is read to be fused."""


class Ranked(Protocol):
    """What retrievers need of an index."""

    store: Store

    @property
    def bm25(self) -> Bm25:
        """BM25 of all chunks."""

    def encoders(self) -> dict[str, Encoder]:
        """The encoders of the index by the names of their spaces."""


def by_words(index: Ranked, question: str, k: int, allowed: set[int] | None = None) -> Ranking:
    """BM25; chunks that have no word of the question are not ranked."""
    bm25 = index.bm25
    scores = bm25.scores(question)
    if allowed is not None:
        scores = np.where(np.isin(bm25.ids, list(allowed)), scores, 0)
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(bm25.ids[place]), float(scores[place])) for place in order if scores[place] > 0]


def by_vectors(index: Ranked, question: str, k: int, allowed: set[int] | None = None) -> Ranking:
    """The cosine of the vectors; the rankings of several encoders are fused."""
    rankings = [
        index.store.nearest(space, encoder.encode([question], is_query=True)[0], k, allowed)
        for space, encoder in index.encoders().items()
    ]
    return rankings[0] if len(rankings) == 1 else fused(rankings)[:k]


def by_both(index: Ranked, question: str, k: int, allowed: set[int] | None = None) -> Ranking:
    """Words and the vectors of each encoder by reciprocal rank."""
    depth = max(k, DEEPEST)
    rankings = [by_words(index, question, depth, allowed)]
    for space, encoder in index.encoders().items():
        rankings.append(index.store.nearest(space, encoder.encode([question], is_query=True)[0], depth, allowed))
    return fused(rankings)[:k]


def by_feedback(index: Ranked, question: str, k: int, allowed: set[int] | None = None) -> Ranking:
    """As `by_both`, with question vectors moved by half the mean of the first `FEEDBACK` passages."""
    depth = max(k, DEEPEST)
    rankings = [by_words(index, question, depth, allowed)]
    for space, encoder in index.encoders().items():
        vector = encoder.encode([question], is_query=True)[0]
        first = [number for number, _ in index.store.nearest(space, vector, FEEDBACK, allowed)]
        if first:
            vector = unit((vector + index.store.vectors(space, first).mean(axis=0) / 2)[None])[0]
        rankings.append(index.store.nearest(space, vector, depth, allowed))
    return fused(rankings)[:k]


def fused(rankings: Sequence[Ranking]) -> Ranking:
    """The sum of 1 / (FUSION + rank) over rankings; equal sums in the order of the ids."""
    totals: dict[int, float] = {}
    for ranking in rankings:
        for rank, (number, _) in enumerate(ranking, 1):
            totals[number] = totals.get(number, 0.0) + 1 / (FUSION + rank)
    return sorted(totals.items(), key=lambda each: (-each[1], each[0]))


Retriever = Callable[[Ranked, str, int, set[int] | None], Ranking]
RETRIEVERS: dict[str, Retriever] = {"bm25": by_words, "dense": by_vectors, "hybrid": by_both, "feedback": by_feedback}
"""The retrievers by the names that verbs and settings have for them."""
