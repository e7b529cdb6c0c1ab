"""The rule of multilingual C4 (Xue et al. 2021, arXiv 2010.11934, section 3.1): at least three long lines.

The decisions are those of datatrove's `C4ParagraphFilter`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepSettings


class C4ParagraphsSettings(StepSettings):
    """At least `min_paragraphs` lines have at least `min_characters` characters."""

    kind: Literal["c4_paragraphs"] = "c4_paragraphs"
    min_paragraphs: int = Field(default=3, ge=1)
    min_characters: int = Field(default=200, ge=1)


class C4Paragraphs(RuleStep):
    """Removes pages without long paragraphs."""

    Settings = C4ParagraphsSettings
    about = "pages with long paragraphs"
    source = "mC4, arXiv 2010.11934, 3.1"

    def limits(self) -> Sequence[Limit]:
        name = f"characters of line {self.settings.min_paragraphs} by length"
        return (Limit(name, least=self.settings.min_characters),)

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        count = self.settings.min_paragraphs
        longest = heapq.nlargest(count, map(len, document.text.split("\n")))
        yield f"characters of line {count} by length", longest[-1] if len(longest) == count else 0


STEP = C4Paragraphs
