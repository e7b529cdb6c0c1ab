"""Words of texts as search sees them: lower case, without stop words, stemmed; and the spans of tokens and sentences.

Stemmers are Snowball's (Porter 1980, 2001; NLTK), stop words those of bm25s. Scripts without spaces between words
(Chinese, Japanese, Korean) have one word per character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.settings import did_you_mean

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}][^\W{_CJK}]+")
"""Words of at least two characters, as scikit-learn's; single characters only of scripts without spaces."""
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
"""Words and signs, for sizes of chunks."""

LANGUAGES = {
    "english": "EN_PLUS", "german": "GERMAN", "dutch": "DUTCH", "french": "FRENCH", "spanish": "SPANISH",
    "portuguese": "PORTUGUESE", "italian": "ITALIAN", "russian": "RUSSIAN", "swedish": "SWEDISH",
    "norwegian": "NORWEGIAN", "danish": "DANISH", "hungarian": "", "romanian": "", "finnish": "", "arabic": "",
}  # fmt: skip
"""Languages with a stemmer -> bm25s' list of stop words; "" where it has none."""


@cache
def _stemmer(language: str) -> Callable[[str], str]:
    with require("stemming", "NLTK", "rag", ', or set language = "none"'):
        from nltk.stem.snowball import SnowballStemmer
    stem: Callable[[str], str] = cache(SnowballStemmer(language).stem)
    return stem


@cache
def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language, as bm25s lists them; none where it has no list. Raises InputError without bm25s."""
    name = LANGUAGES.get(language, "")
    if not name:
        return frozenset()
    return frozenset(getattr(import_bm25s().stopwords, f"STOPWORDS_{name}"))


def import_bm25s() -> Any:
    """The library bm25s. Raises InputError where it is not installed."""
    with require("BM25", "bm25s", "rag"):
        import bm25s
        import bm25s.stopwords
    return bm25s


class Analyzer:
    """Texts to the words that are searched for. `language` is one of LANGUAGES, or "none": no stems, no stop words."""

    def __init__(self, language: str = "english"):
        """Raises InputError for an unknown language, or a library that is not installed."""
        if language not in LANGUAGES and language != "none":
            known = [*LANGUAGES, "none"]
            raise InputError(
                f"language: {language!r}; must be one of {', '.join(known)}{did_you_mean(language, known)}"
            )
        self.language = language
        self._stop = stop_words(language)
        self._stem: Callable[[str], str] = _stemmer(language) if language != "none" else str

    def __call__(self, text: str) -> list[str]:
        """The words of a text in their order, repeated as they are."""
        stop, stem = self._stop, self._stem
        words = _WORD.findall(unicodedata.normalize("NFC", text).lower())
        return [stem(word) for word in words if word not in stop]


def token_spans(text: str) -> list[tuple[int, int]]:
    """The spans of the words and signs of a text; sizes of chunks count them unless a tokenizer is named."""
    return [found.span() for found in _TOKEN.finditer(text)]


_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st vs etc e.g i.e fig figs no nos vol pp ca approx inc ltd co corp dept jr sr al cf eq eqs sec "
    "u.s u.k ph.d jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”]*|\n\s*\n|\n(?=\s*(?:[-*•#>|]|\d+[.)]\s))")
"""Where a sentence may end: its signs, Chinese and Japanese ones, an empty line, the next item of a list."""
_LAST_WORD = re.compile(r"[\w.]+$")


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """The spans of the sentences of a text between two places, without white space at their ends.

    A full stop ends no sentence after an abbreviation or an initial, or before a lower-case letter.
    """
    end = len(text) if end is None else end
    spans, begin = [], start
    for found in _END.finditer(text, start, end):
        if found[0][0] == "." and not _ends(text, begin, found.start(), found.end()):
            continue
        spans.append(trimmed_span(text, begin, found.end()))
        begin = found.end()
    spans.append(trimmed_span(text, begin, end))
    return [span for span in spans if span[0] < span[1]]


def _ends(text: str, begin: int, stop: int, after: int) -> bool:
    """Whether a full stop at `stop` ends the sentence that began at `begin`."""
    if text[after : after + 64].lstrip()[:1].islower():
        return False
    word = _LAST_WORD.search(text[max(begin, stop - 24) : stop])
    if word is None:
        return True
    last = word[0].lower()
    return last not in _ABBREVIATIONS and not (len(last) == 1 and last.isalpha() and word[0].isupper())


def trimmed_span(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the white space at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
