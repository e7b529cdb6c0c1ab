"""Gopher's rules on quality (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1): words, symbols, bullets, stop words.

The decisions are those of datatrove's `GopherQualityFilter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from quatrain.core.settings import Listing
from quatrain.data.curation.characters import SYMBOLS
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepContext, StepSettings
from quatrain.data.curation.words import english_words

BULLETS = ("•", "-")
ELLIPSES = ("...", "…")


class GopherQualitySettings(StepSettings):
    """The thresholds of the paper. 0 turns a rule off."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, ge=0)
    min_word_length: float = Field(default=3, ge=0)
    max_word_length: float = Field(default=10, ge=0)
    max_symbol_ratio: float = Field(default=0.1, ge=0, description="of # to words, and of … to words")
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1)
    min_stop_words: int = Field(default=2, ge=0)
    stop_words: Listing[str] = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherQuality(RuleStep):
    """Removes what is not prose."""

    Settings = GopherQualitySettings
    about = "prose: word lengths, symbols, bullets, stop words"
    source = "Gopher, arXiv 2112.11446, A.1.1"
    word_tables = ("english",)

    def __init__(self, settings: GopherQualitySettings, context: StepContext):
        super().__init__(settings, context)
        self.words = english_words()
        self.lengths = self.words.feature("real length", lambda word: 0 if SYMBOLS.issuperset(word) else len(word))
        self.alphabetic = self.words.feature("alphabetic", lambda word: any(map(str.isalpha, word)), dtype=bool)
        numbers = {word: number for number, word in enumerate(settings.stop_words, 1)}
        name = f"stop words {settings.stop_words}"
        self.stop_words = self.words.feature(name, lambda word: numbers.get(word, 0))

    def limits(self) -> Sequence[Limit]:
        settings = self.settings
        return (
            Limit("words", least=settings.min_words or None, most=settings.max_words or None),
            Limit("mean word length", least=settings.min_word_length or None, most=settings.max_word_length or None),
            Limit("hashes a word", most=settings.max_symbol_ratio or None),
            Limit("ellipses a word", most=settings.max_symbol_ratio or None),
            Limit("bullet lines", most=settings.max_bullet_lines or None),
            Limit("lines that end in an ellipsis", most=settings.max_ellipsis_lines or None),
            Limit("alphabetic words", least=settings.min_alphabetic_words or None),
            Limit("stop words", least=settings.min_stop_words or None),
        )

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        text = document.text
        ids = self.words.ids(text)
        lengths = self.lengths.of(ids)  # 0 for a symbol
        words = int(np.count_nonzero(lengths))
        yield "words", words
        if not len(ids):
            return
        yield "mean word length", int(lengths.sum()) / words if words else 0.0
        yield "hashes a word", text.count("#") / len(ids)
        ellipses = text.count("...") + text.count("…")
        yield "ellipses a word", ellipses / len(ids)
        lines = text.splitlines()
        bullets = any(bullet in text for bullet in BULLETS)
        yield "bullet lines", sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines) if bullets else 0.0
        ends = sum(line.rstrip().endswith(ELLIPSES) for line in lines) if ellipses else 0
        yield "lines that end in an ellipsis", ends / len(lines)
        yield "alphabetic words", int(np.count_nonzero(self.alphabetic.of(ids))) / len(ids)
        found = self.stop_words.of(ids)
        yield "stop words", len(set(found[found > 0].tolist()))


STEP = GopherQuality
