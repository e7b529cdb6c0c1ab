"""Removes texts that are too short or too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepSettings


class LengthSettings(StepSettings):
    """Words are runs of characters between white space."""

    kind: Literal["length"] = "length"
    min_words: int = Field(default=20, ge=0)
    max_words: int = Field(default=200_000, ge=1)

    def conflicts(self) -> Iterator[Problem]:
        if self.min_words > self.max_words:
            yield Problem(("min_words",), f"{self.min_words}; must be at most max_words = {self.max_words}")


class Length(RuleStep):
    """Counts the words."""

    Settings = LengthSettings
    about = "texts of a sensible length"

    def limits(self) -> Sequence[Limit]:
        return (Limit("words", least=self.settings.min_words, most=self.settings.max_words),)

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        yield "words", len(document.text.split())


STEP = Length
