"""Which examples become the shots of a prompt.

Every way ranks the pool for a question, best first. What the question itself says never becomes a shot, in whatever
case and spacing, and no text twice. The same pool, seed and question give the same shots.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.wording import format_value

MOST_ANSWERS = 100
"""The most different answers among which shots are balanced."""
BLOCK = 256
"""Texts that are embedded at a time."""

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Vectors (N, D) of texts."""
Rank = Callable[[str], Iterator[int]]
"""The numbers of the pool's examples for a question, the best first."""


@dataclass
class Pool:
    """The examples to draw shots from: their questions and answers as texts.

    `embed` is asked for vectors once for the pool, and once for each question.
    """

    questions: Sequence[str]
    answers: Sequence[str]
    seed: int = 0
    embed: Embed | None = None
    keys: list[str] = field(init=False)
    """The questions without differences of case and spacing."""

    def __post_init__(self) -> None:
        self.keys = [same(question) for question in self.questions]

    def choose(self, rank: Rank, question: str, count: int) -> list[int]:
        """The numbers of `count` shots for a question, the best last, next to the question; fewer if the pool ends."""
        seen, chosen = {same(question)}, list[int]()
        for number in rank(question) if count else ():
            if self.keys[number] in seen:
                continue
            seen.add(self.keys[number])
            chosen.append(number)
            if len(chosen) == count:
                break
        return chosen[::-1]


def same(text: str) -> str:
    """A text without differences of case and spacing."""
    return " ".join(text.casefold().split())


def ranking(selection: str, pool: Pool) -> Rank:
    """The way of choosing shots that a prompt names. Raises InputError where the pool does not allow it."""
    return SELECTIONS[selection](pool)


def _random(pool: Pool) -> Rank:
    """The same draw for every question."""
    order = list(range(len(pool.questions)))
    random.Random(pool.seed).shuffle(order)
    return lambda question: iter(order)


def _balanced(pool: Pool) -> Rank:
    """In turn one example of each answer, the answers and their examples in a drawn order."""
    generator, groups = random.Random(pool.seed), dict[str, list[int]]()
    for number, answer in enumerate(pool.answers):
        groups.setdefault(answer, []).append(number)
    if len(groups) > MOST_ANSWERS:
        raise InputError(
            f'selection "balanced": the pool has {len(groups):,} different answers, at most {MOST_ANSWERS} can be '
            'balanced; use "random", "bm25" or "similar"'
        )
    answers = sorted(groups)
    generator.shuffle(answers)
    for answer in answers:
        generator.shuffle(groups[answer])

    def rank(question: str) -> Iterator[int]:
        # A shot that says what the question says is passed over, so that its answer's turn goes to the next one.
        key = same(question)
        columns = [[number for number in groups[answer] if pool.keys[number] != key] for answer in answers]
        for place in range(max(map(len, columns), default=0)):
            yield from (column[place] for column in columns if place < len(column))

    return rank


def _similar(pool: Pool) -> Rank:
    """The nearest by the cosine of their vectors (Liu et al. 2022, arXiv 2101.06804)."""
    if pool.embed is None:
        raise InputError('selection "similar": give embedder = FOLDER, a model of sentence embeddings')
    embed = pool.embed
    starts = range(0, len(pool.questions), BLOCK)
    vectors = np.concatenate([_unit(embed(list(pool.questions[start : start + BLOCK]))) for start in starts])

    def rank(question: str) -> Iterator[int]:
        similarity = vectors @ _unit(embed([question]))[0]
        return iter(np.argsort(-similarity, kind="stable").tolist())

    return rank


def _bm25(pool: Pool) -> Rank:
    """The best by BM25 (Robertson and Zaragoza 2009)."""
    with require('selection "bm25"', "bm25s", "rag", '; "random" and "balanced" need nothing.'):
        import bm25s

    def words(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(list(texts), show_progress=False, stopwords=None, return_ids=False)

    index = bm25s.BM25()
    index.index(words(pool.questions), show_progress=False)

    def rank(question: str) -> Iterator[int]:
        (tokens,) = words([question])
        known = [token for token in tokens if token in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(pool.questions))
        return iter(np.argsort(-np.asarray(scores), kind="stable").tolist())

    return rank


SELECTIONS: dict[str, Callable[[Pool], Rank]] = {
    "random": _random,
    "balanced": _balanced,
    "similar": _similar,
    "bm25": _bm25,
}


def embedder(folder: str) -> Embed:
    """Vectors by the sentence embeddings of a model folder. Raises InputError for a model of another kind."""
    from quatrain.loading.model import load_model
    from quatrain.models.io.sentence_transformers import embed

    model, tokenizer = load_model(folder)
    if model.config.head != "embedding" or tokenizer is None:
        raise InputError(
            f"embedder {format_value(folder)}: has the head {model.config.head}; give a folder of sentence embeddings"
        )

    def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = embed(model, tokenizer, list(texts)).float().cpu().numpy()
        return result

    return vectors


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return unit
