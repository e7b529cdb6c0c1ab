"""C4's rules (Raffel et al. 2020, arXiv 1910.10683, section 2.2): lines that end a sentence, no code, no boilerplate.

The decisions and the remaining lines are those of datatrove's `C4QualityFilter`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Limit, Step, StepContext, StepSettings
from quatrain.data.curation.words import english_words, sentence_ends

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
ENDINGS = (".", "?", "!", '"', "'")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_IRREGULAR = re.compile(r"\s{2,}|[^\S ]")


class C4QualitySettings(StepSettings):
    """The thresholds of the paper and of its published code."""

    kind: Literal["c4_quality"] = "c4_quality"
    min_sentences: int = Field(default=5, ge=0)
    min_line_words: int = Field(default=3, ge=0)
    max_word_length: int = Field(default=1000, ge=1)


class C4Quality(Step):
    """Keeps lines that end a sentence, without citations; removes pages with braces, lorem ipsum or few sentences."""

    Settings = C4QualitySettings
    about = "lines that are sentences; no code, no boilerplate"
    source = "C4, arXiv 1910.10683, 2.2"
    word_tables = ("english",)

    def __init__(self, settings: C4QualitySettings, context: StepContext):
        super().__init__(settings, context)
        self.words = english_words()
        self.kinds = self.words.feature("sentence", kind_of)

    def apply(self, document: SourceDocument) -> Removal | None:
        settings = self.settings
        text, lowered = document.text, document.text.lower()
        # What the whole text does not contain, no line contains; a citation could have hidden it.
        cited = "[" in text
        suspect = cited or any(phrase in lowered for phrase in ("lorem ipsum", "javascript", *POLICY))
        sentences, kept = 0, []
        for line in text.splitlines():
            line = line.strip()
            words = line.split()
            if len(line) > settings.max_word_length and any(len(word) > settings.max_word_length for word in words):
                continue
            if cited:
                line = CITATION.sub("", line)
            if not line.endswith(ENDINGS) or line.endswith("..."):
                continue
            if len(words) < settings.min_line_words:
                continue
            if suspect:
                small = line.lower()
                if "lorem ipsum" in small:
                    return Removal("lorem ipsum")
                if "javascript" in small:
                    continue
            if "{" in line:
                return Removal("a curly bracket")
            if suspect and any(phrase in small for phrase in POLICY):
                continue
            if sentences < settings.min_sentences:
                sentences += self.sentences(line)
            kept.append(line)
        if sentences < settings.min_sentences:
            return Removal(f"sentences below {settings.min_sentences}")
        document.text = "\n".join(kept).strip()
        return None

    def limits(self) -> Sequence[Limit]:
        return (Limit("sentences", least=self.settings.min_sentences),)

    def measures(self, document: SourceDocument) -> dict[str, float]:
        """The sentences of lines that end one."""
        lines = (line.strip() for line in document.text.splitlines())
        return {"sentences": sum(self.sentences(line) for line in lines if line.endswith(ENDINGS))}

    def sentences(self, line: str) -> int:
        """The sentences of a line: one ends where a word follows a mark such as a full stop."""
        kinds = [self.kinds.of(self.words.ids(part)) for part in _IRREGULAR.split(line)]
        # White space beyond one space is a word of its own.
        joined = np.concatenate([kinds[0], *(np.append(WORD, part) for part in kinds[1:])])
        joined = joined[joined != MARK]
        return 1 + int(((joined[1:] == WORD) & (joined[:-1] == END)).sum())


WORD, END, MARK = 0, 1, 2
"""A word, a mark that ends a sentence, and any other mark."""


def kind_of(word: str) -> int:
    """The kind of a word; marks are words of characters that Unicode calls punctuation."""
    if word in sentence_ends():
        return END
    return MARK if all(unicodedata.category(letter).startswith("P") for letter in word) else WORD


STEP = C4Quality
