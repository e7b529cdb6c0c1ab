"""FineWeb's rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6): ends of lines, short and repeated lines, lists.

The decisions are those of datatrove's `FineWebQualityFilter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from quatrain.data.curation.characters import TERMINAL
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepContext, StepSettings
from quatrain.data.curation.steps.gopher_repetition import duplicates
from quatrain.data.curation.words import english_words


class FineWebQualitySettings(StepSettings):
    """The thresholds of the paper. A line of at most `short_line` characters is short."""

    kind: Literal["fineweb_quality"] = "fineweb_quality"
    min_ended_lines: float = Field(default=0.12, ge=0, le=1, description="share of lines that end a sentence")
    max_short_lines: float = Field(default=0.67, ge=0, le=1)
    short_line: int = Field(default=30, ge=1)
    max_duplicate_characters: float = Field(default=0.01, ge=0, le=1)
    max_line_breaks: float = Field(default=0.3, ge=0, description="line breaks a word")


class FineWebQuality(RuleStep):
    """Removes lists, menus and fragments."""

    Settings = FineWebQualitySettings
    about = "running text: no lists, menus and repeated lines"
    source = "FineWeb, arXiv 2406.17557, 3.6"
    word_tables = ("english",)

    def __init__(self, settings: FineWebQualitySettings, context: StepContext):
        super().__init__(settings, context)
        self.words = english_words()

    def limits(self) -> Sequence[Limit]:
        settings = self.settings
        return (
            Limit("lines that end a sentence", least=settings.min_ended_lines),
            Limit("short lines", most=settings.max_short_lines),
            Limit("characters in duplicate lines", most=settings.max_duplicate_characters),
            Limit("line breaks a word", most=settings.max_line_breaks),
        )

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        text = document.text
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            yield "lines that end a sentence", -1.0
            return
        yield "lines that end a sentence", sum(line[-1] in TERMINAL for line in lines) / len(lines)
        yield "short lines", sum(len(line) <= self.settings.short_line for line in lines) / len(lines)
        breaks = text.count("\n")
        yield "characters in duplicate lines", duplicates(lines)[1] / (len(text) - breaks)
        yield "line breaks a word", breaks / max(1, len(self.words.ids(text)))


STEP = FineWebQuality
