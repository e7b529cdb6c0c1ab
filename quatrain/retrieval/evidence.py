"""How much of a question or a statement the words of a passage cover, weighted by how rare each word is.

The measure decides whether documents answer a question at all, which sentence is quoted, and which statements of a
generated answer have support. It reads no meaning: a passage that says the opposite in the same words has it too.
`entailment` is the check by a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from quatrain.retrieval.index import Hit, Index
from quatrain.retrieval.words import sentence_spans

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ASKING = frozenset(
    "what who whom whose which when where why how do does did is are was were can could should would will may might "
    "must have has had tell give show list name explain describe mean means say says please know find many much kind "
    "kinds type types s long often old far".split()
)
"""Words that ask; they need not be in an answer."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of a hit; `start` and `end` are offsets in the document."""

    hit: int
    """The place of the hit in the list, from 0."""
    start: int
    end: int
    text: str


def sentences_of(hits: Sequence[Hit]) -> list[Sentence]:
    """The sentences of hits, in their order."""
    return [
        Sentence(number, hit.start + start, hit.start + end, hit.text[start:end])
        for number, hit in enumerate(hits)
        for start, end in sentence_spans(hit.text)
    ]


class Weights:
    """The weight of each word in an index: BM25's, log(1 + (N - n + 0.5) / (n + 0.5)) for a word in n of N chunks."""

    def __init__(self, index: Index):
        self.bm25 = index.bm25

    @cached_property
    def chunks(self) -> int:
        """The chunks of the index."""
        return len(self.bm25.ids)

    def of(self, word: str) -> float:
        """The weight of one word of the analyzer."""
        count = self.bm25.document_frequency(word)
        return math.log(1 + (self.chunks - count + 0.5) / (count + 0.5))

    def words(self, text: str) -> list[str]:
        """The words of a text, as the index counts them."""
        return self.bm25.analyzer(text)

    def asked(self, question: str) -> dict[str, float]:
        """The content words of a question with their weights; all words where it has none but asking ones."""
        kept = " ".join(word for word in re.findall(r"\w+", question) if word.lower() not in _ASKING)
        words = self.words(kept) or self.words(question)
        return {word: self.of(word) for word in words}

    def coverage(self, wanted: dict[str, float], text: str) -> float:
        """The share of the wanted weight that a text has, from 0 to 1."""
        total = sum(wanted.values())
        has = set(self.words(text))
        return sum(weight for word, weight in wanted.items() if word in has) / total if total else 0.0

    def evidence(self, question: str, text: str) -> float:
        """How far a text speaks of what a question asks, from 0 to 1.

        The mean of the share of its content words, by weight, and of the share of their neighbouring pairs that are
        neighbours in the text too: "factor I deficiency" has the words of "factor X deficiency", but not its pairs.
        """
        wanted = self.asked(question)
        share, words = self.coverage(wanted, text), list(wanted)
        pairs = set(pairwise(words))
        if not pairs:
            return share
        has = self.words(text)
        return (share + len(pairs & set(pairwise(has))) / len(pairs)) / 2

    def support(self, statement: str, source: str) -> float:
        """The share of a statement's words that a source has; 0 where it names a number that the source does not."""
        numbers = set(_NUMBER.findall(statement))
        if numbers - set(_NUMBER.findall(source)):
            return 0.0
        return self.coverage({word: self.of(word) for word in self.words(statement)}, source)


class Entailment:
    """How surely a source implies a statement, by a model of natural-language inference.

    Honovich et al. 2022 (TRUE, arXiv 2204.04991) measure faithfulness so.
    """

    def __init__(self, name: str):
        """Raises InputError for a model without a class "entailment"."""
        from quatrain.core.errors import InputError
        from quatrain.tasks.pipelines import pipeline

        self._pipeline: Any = pipeline("text-classification", name)
        labels = [label for label in self._pipeline.config.labels if label.lower() == "entailment"]
        if not labels:
            raise InputError(
                f"entailment: {name!r} has the classes {', '.join(self._pipeline.config.labels)}; one must be "
                "entailment, as of the recipe nli"
            )
        self.label = labels[0]

    def probabilities(self, sources: Sequence[str], statements: Sequence[str]) -> list[float]:
        """The probability of entailment for each pair."""
        pairs = [{"text": one, "text_pair": other} for one, other in zip(sources, statements, strict=True)]
        found = self._pipeline(pairs, top_k=None) if pairs else []
        return [next(each["score"] for each in classes if each["label"] == self.label) for classes in found]
