"""Removes documents with words of a list, as C4 does with its list of bad words (Raffel et al. 2020, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Limit, Step, StepContext, StepSettings
from quatrain.data.curation.steps.url import entries


class WordListSettings(StepSettings):
    """`words` is a list, `file` a file with a word or phrase a line. One occurrence more than `most` removes a text.

    The package ships no list: which words a corpus may contain is the user's decision.
    """

    kind: Literal["word_list"] = "word_list"
    words: Listing[str] = ()
    file: str | None = Field(default=None, min_length=1)
    most: int = Field(default=0, ge=0, description="occurrences that are allowed")

    def conflicts(self) -> Iterator[Problem]:
        if not (self.words or self.file):
            yield Problem((), "has no list; must have words or a file")


class WordList(Step):
    """Looks for whole words and phrases, whatever their case."""

    Settings = WordListSettings
    about = "texts without listed words"
    source = "C4, arXiv 1910.10683, 2.2"

    def __init__(self, settings: WordListSettings, context: StepContext):
        super().__init__(settings, context)
        words = sorted({word.lower() for word in entries(settings.words, settings.file)}, key=len, reverse=True)
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")

    def apply(self, document: SourceDocument) -> Removal | None:
        found = self.pattern.findall(document.text.lower())
        if len(found) > self.settings.most:
            return Removal(f"listed words above {self.settings.most}", ", ".join(sorted(set(found))[:5]))
        return None

    def limits(self) -> Sequence[Limit]:
        return (Limit("listed words", most=self.settings.most),)

    def measures(self, document: SourceDocument) -> dict[str, float]:
        return {"listed words": len(self.pattern.findall(document.text.lower()))}


STEP = WordList
