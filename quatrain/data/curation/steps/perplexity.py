"""Keeps texts that an n-gram model of good text finds neither strange nor trivial (CCNet, Wenzek et al. 2020).

The model is the package's own n-gram model with modified Kneser-Ney smoothing, over the words of the reference; words
that it does not know are one word.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from pydantic import Field

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.core.settings import Problem
from quatrain.data.curation.arrays import Array
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepContext, StepSettings
from quatrain.data.curation.steps.quality_classifier import Examples
from quatrain.data.documents import read_documents

MEASURE = "perplexity"
UNKNOWN = 0
MOST_JSON = 1 << 28
HELD_OUT = 10
"""One of so many documents of the reference is held out, for the thresholds by share."""


class PerplexitySettings(StepSettings):
    """`reference` is good text. Texts with a perplexity per word above `most` or below `least` are removed.

    Without `most` it is the perplexity that a share `keep` of the reference held out stays below. `words` is the size
    of the vocabulary. A low perplexity is a mark of boilerplate.
    """

    kind: Literal["perplexity"] = "perplexity"
    reference: Examples
    order: int = Field(default=3, ge=1, le=7)
    words: int = Field(default=50_000, ge=10, le=1_000_000)
    documents: int = Field(default=50_000, ge=10, description="of the reference that are read")
    most: float | None = Field(default=None, gt=1)
    least: float | None = Field(default=None, ge=1)
    keep: float = Field(default=0.95, gt=0, le=1)

    def conflicts(self) -> Iterator[Problem]:
        if self.most is not None and self.least is not None and self.least >= self.most:
            yield Problem(("least",), f"{self.least:g}; must be below most = {self.most:g}")


class Perplexity(RuleStep):
    """Measures how well the n-gram model predicts a text."""

    Settings = PerplexitySettings
    about = "texts that a model of good text predicts"
    source = "CCNet, arXiv 1911.00359"
    memory = 400_000_000

    @classmethod
    def prepare(cls, settings: PerplexitySettings, context: StepContext) -> None:
        """Trains the model, and measures the reference held out."""
        from quatrain.models.classic.ngram import NgramModel

        texts = list(islice(read_documents(settings.reference.path, column=settings.reference.column),
                            settings.documents))  # fmt: skip
        learned = [text for number, text in enumerate(texts) if number % HELD_OUT]
        held_out = texts[::HELD_OUT]
        if not learned:
            raise InputError(f"perplexity: {settings.reference.path} has {len(texts)} documents; give at least 2")
        counts = Counter(word for text in learned for word in words_of(text))
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: settings.words - 1]
        vocabulary = {word: number for number, (word, _) in enumerate(common, 1)}
        ids = np.concatenate([ids_of(text, vocabulary) for text in learned])
        model = NgramModel.fit(ids, len(vocabulary) + 1, settings.order, "modified_kneser_ney")
        model.save(context.folder / "model")
        write_json(context.folder / "words.json", list(vocabulary), indent=None)
        measured = sorted(perplexity(model, ids_of(text, vocabulary)) for text in held_out)
        place = min(len(measured) - 1, math.ceil(settings.keep * len(measured)) - 1)
        write_json(context.folder / "reference.json", {"most": measured[place], "median": measured[len(measured) // 2]})

    def __init__(self, settings: PerplexitySettings, context: StepContext):
        self._model: tuple[Any, dict[str, int]] | None = None
        super().__init__(settings, context)

    def limits(self) -> Sequence[Limit]:
        most = self.settings.most
        reference = self.context.folder / "reference.json"
        if most is None and reference.is_file():
            most = round(read_json(reference)["most"], 1)
        return (Limit(MEASURE, least=self.settings.least, most=most),)

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        if self._model is None:
            from quatrain.models.classic.ngram import NgramModel

            words: list[str] = read_json(self.context.folder / "words.json", list, max_bytes=MOST_JSON)
            vocabulary = {word: number for number, word in enumerate(words, 1)}
            folder = self.context.folder / "model"
            self._model = NgramModel.load(folder, read_json(folder / "config.json")), vocabulary
        model, vocabulary = self._model
        yield MEASURE, perplexity(model, ids_of(document.text, vocabulary))


def words_of(text: str) -> list[str]:
    """The words of a text without case."""
    return text.casefold().split()


def ids_of(text: str, vocabulary: dict[str, int]) -> Array:
    """The ids (N,) int64 of the words of a text."""
    return np.array([vocabulary.get(word, UNKNOWN) for word in words_of(text)], dtype=np.int64)


def perplexity(model: Any, ids: Array) -> float:
    """The perplexity per word; 1 for an empty text."""
    if not len(ids):
        return 1.0
    loss, count = model.text_loss(ids)
    return float(math.exp(min(60.0, loss / max(1, count))))


STEP = Perplexity
