"""Gopher's rules on repetition (Rae et al. 2021, arXiv 2112.11446, table A1): lines, paragraphs and n-grams.

The decisions are those of datatrove's `GopherRepetitionFilter`. The rules on n-grams count each n-gram of a text for
nine values of n. Here bounds come first: if the runs of 5 words that occur again cover little of a text, so do those of
6 to 10 words, and if the most frequent 2-gram is rare, so are all longer ones. Few texts need the exact counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from quatrain.core.settings import Listing
from quatrain.data.curation.arrays import Array
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepContext, StepSettings
from quatrain.data.curation.words import english_words, window_hashes

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_BASE = 0x5851F42D4C957F2D
"""The odd multiplier of the polynomial hash of characters, modulo 2**64."""
_MASK = 2**64 - 1
_INVERSE = pow(_BASE, -1, 2**64)


class GopherRepetitionSettings(StepSettings):
    """The thresholds of the paper. `top_ngrams` are those of 2, 3, 4 words, `duplicate_ngrams` those of 5 to 10."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    duplicate_lines: float = Field(default=0.3, ge=0, le=1)
    duplicate_paragraphs: float = Field(default=0.3, ge=0, le=1)
    duplicate_line_characters: float = Field(default=0.2, ge=0, le=1)
    duplicate_paragraph_characters: float = Field(default=0.2, ge=0, le=1)
    top_ngrams: Listing[float] = Field(default=(0.2, 0.18, 0.16), max_length=3)
    duplicate_ngrams: Listing[float] = Field(default=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10), max_length=6)


class GopherRepetition(RuleStep):
    """Removes texts that repeat themselves."""

    Settings = GopherRepetitionSettings
    about = "texts that do not repeat themselves"
    source = "Gopher, arXiv 2112.11446, table A1"
    word_tables = ("english",)

    def __init__(self, settings: GopherRepetitionSettings, context: StepContext):
        super().__init__(settings, context)
        self.words = english_words()
        self.lengths = self.words.feature("length", len)
        self.hashes = self.words.feature("characters", _characters_hash, dtype=np.uint64)
        self.powers = _Powers()
        self.top = tuple(enumerate(settings.top_ngrams, 2))
        self.duplicates = tuple(enumerate(settings.duplicate_ngrams, 5))

    def limits(self) -> Sequence[Limit]:
        settings = self.settings
        return (
            Limit("duplicate paragraphs", most=settings.duplicate_paragraphs or None),
            Limit("characters in duplicate paragraphs", most=settings.duplicate_paragraph_characters or None),
            Limit("duplicate lines", most=settings.duplicate_lines or None),
            Limit("characters in duplicate lines", most=settings.duplicate_line_characters or None),
            *(Limit(f"characters in the top {n}-gram", most=most) for n, most in enumerate(settings.top_ngrams, 2)),
            *(Limit(f"characters in duplicate {n}-grams", most=most)
              for n, most in enumerate(settings.duplicate_ngrams, 5)),
        )  # fmt: skip

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        return self._values(document.text, exact=False)

    def measures(self, document: SourceDocument) -> dict[str, float]:
        return dict(self._values(document.text, exact=True))

    def _values(self, text: str, *, exact: bool) -> Iterator[tuple[str, float]]:
        """The measures; unless `exact`, those of n-grams only where bounds do not show that they pass."""
        if not text:
            yield "duplicate paragraphs", 1.0
            return
        gaps = "\n\n" in text
        paragraphs = _PARAGRAPHS.split(text.strip()) if gaps else [text.strip()]
        lines = _LINES.split(text) if gaps else text.split("\n")
        for name, parts in (("paragraph", paragraphs), ("line", lines)):
            count, characters = duplicates(parts)
            yield f"duplicate {name}s", count / len(parts)
            yield f"characters in duplicate {name}s", characters / len(text)
        ids = self.words.ids(text)
        ends = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(self.lengths.of(ids), out=ends[1:])
        yield from self._top(ids, ends, len(text), exact=exact)
        yield from self._duplicated(ids, ends, len(text), exact=exact)

    def _top(self, ids: Array, ends: Array, size: int, *, exact: bool) -> Iterator[tuple[str, float]]:
        """Characters of the most frequent n-gram, the first of equals, in all its places."""
        if len(ids) < 2 or not self.top:
            return
        keys = pairs(ids[:-1], ids[1:])
        repeats = longest_run(np.sort(keys))
        for n, most in self.top:
            if len(ids) < n:
                return
            longest = longest_window(ends, n)
            # No longer n-gram is more frequent than the most frequent 2-gram, and none is longer than the longest.
            if not exact and repeats * longest <= most * size:
                continue
            if not exact and n > 2:
                repeats = longest_run(np.sort(window_hashes(ids.astype(np.uint64), n)))
                if repeats * longest <= most * size:
                    continue
            _, first, counts = np.unique(grams(keys, ids, n), return_index=True, return_counts=True)
            top = int(first[counts == counts.max()].min())
            yield f"characters in the top {n}-gram", (int(ends[top + n] - ends[top]) + n - 1) * int(counts.max()) / size

    def _duplicated(self, ids: Array, ends: Array, size: int, *, exact: bool) -> Iterator[tuple[str, float]]:
        """Characters of n-grams that occurred before, counted without overlaps."""
        if not self.duplicates:
            return
        sums = np.zeros(len(ids) + 1, dtype=np.uint64)
        powers, inverses = self.powers.upto(int(ends[-1]))
        np.cumsum(self.hashes.of(ids) * inverses[ends[1:]], out=sums[1:])

        def windows(n: int) -> Array:
            result: Array = (sums[n:] - sums[: len(sums) - n]) * powers[ends[n:]]
            return result

        lengths = ends[1:] - ends[:-1]
        smallest = min(most for _, most in self.duplicates)
        for n, most in self.duplicates:
            if len(ids) < n:
                return
            if not exact:
                covered = characters_covered(repeated(windows(n)), lengths, n)
                if covered <= smallest * size:
                    return  # what longer n-grams cover, these cover too
                if covered <= most * size:
                    continue
            characters = without_overlaps(windows(n).tolist(), ends.tolist(), n)
            yield f"characters in duplicate {n}-grams", characters / size


class _Powers:
    """The powers of the hash's base and of its inverse, as far as texts were long."""

    def __init__(self) -> None:
        self.powers = self.inverses = np.ones(1, dtype=np.uint64)

    def upto(self, exponent: int) -> tuple[Array, Array]:
        """Base and inverse to the powers 0 to at least `exponent`."""
        if exponent >= len(self.powers):
            size = max(exponent + 1, 2 * len(self.powers), 1 << 14)
            self.powers, self.inverses = _powers(_BASE, size), _powers(_INVERSE, size)
        return self.powers, self.inverses


def _powers(base: int, size: int) -> Array:
    """The powers 0 to `size - 1`, modulo 2**64."""
    factors = np.full(size, base, dtype=np.uint64)
    factors[0] = 1
    result: Array = np.cumprod(factors)
    return result


def _characters_hash(word: str) -> int:
    value = 0
    for letter in word:
        value = (value * _BASE + ord(letter) + 1) & _MASK
    return value


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts occurred before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    counts = Counter(parts)
    return len(parts) - len(counts), sum(len(part) * (count - 1) for part, count in counts.items())


def pairs(left: Array, right: Array) -> Array:
    """One number (N,) int64 for each two numbers below 2**31."""
    result: Array = (left.astype(np.int64) << 32) | right
    return result


def grams(keys: Array, ids: Array, n: int) -> Array:
    """One number for each n-gram, equal for equal ones; `keys` are those of the 2-grams."""
    for length in range(3, n + 1):
        keys = pairs(np.unique(keys, return_inverse=True)[1][:-1], ids[length - 1 :])
    return keys


def characters_covered(places: Array, lengths: Array, n: int) -> int:
    """Characters of the words in the windows of `n` words at these places."""
    if not len(places):
        return 0
    covered = np.zeros(len(lengths), dtype=bool)
    for offset in range(n):
        covered[places + offset] = True
    return int(lengths[covered].sum())


def longest_run(values: Array) -> int:
    """How often the most frequent of sorted values occurs."""
    changes = np.flatnonzero(values[1:] != values[:-1])
    if not len(changes):
        return len(values)
    inner = int((changes[1:] - changes[:-1]).max(initial=0))
    return max(inner, int(changes[0]) + 1, len(values) - 1 - int(changes[-1]))


def longest_window(ends: Array, n: int) -> int:
    """Characters of the longest run of `n` words with a space between them; 0 for a shorter text."""
    return int((ends[n:] - ends[: len(ends) - n]).max()) + n - 1 if len(ends) > n else 0


def repeated(values: Array) -> Array:
    """The places whose value occurred before."""
    ordered = np.sort(values)
    if len(values) < 2 or not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    result: Array = order[1:][values[order[1:]] == values[order[:-1]]]
    return result


def without_overlaps(windows: Sequence[int], ends: Sequence[int], n: int) -> int:
    """Characters of the windows of `n` words that occurred before; after one, reading goes on behind it."""
    seen, place, characters = set(), 0, 0
    while place < len(windows):
        if windows[place] in seen:
            characters += ends[place + n] - ends[place]
            place += n
        else:
            seen.add(windows[place])
            place += 1
    return characters


STEP = GopherRepetition
