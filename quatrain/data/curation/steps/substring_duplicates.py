"""Removes passages that occur in several documents, or several times in one (Lee et al. 2022, arXiv 2107.06499).

A passage of at least `words` words that was seen before is cut out of its text; the first copy stays. All runs of
`words` words are hashed. Each unit sorts its hashes, and ranges of the hashes are compared one after the other, so that
memory is bounded whatever the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from quatrain.data.curation.arrays import Array
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Collector, CorpusStep, StepContext, StepSettings
from quatrain.data.curation.words import WordHashes, window_hashes, word_hashes

AT_ONCE = 10_000_000
"""Runs that are compared at once; each takes 48 bytes."""


class SubstringDuplicatesSettings(StepSettings):
    """`min_words`: a document with fewer words left is removed."""

    kind: Literal["substring_duplicates"] = "substring_duplicates"
    words: int = Field(default=50, ge=5, le=1000)
    min_words: int = Field(default=20, ge=1)


class SubstringDuplicates(CorpusStep):
    """Cuts out repeated passages."""

    Settings = SubstringDuplicatesSettings
    about = "one copy of each long passage"
    source = "Lee et al. 2022, arXiv 2107.06499"
    word_tables = ("hashes",)
    bytes_per_word = 8
    disk_per_word = 16

    def __init__(self, settings: SubstringDuplicatesSettings, context: StepContext):
        super().__init__(settings, context)
        self.hashes = word_hashes()

    def collect(self) -> Collector:
        return _Runs(self.hashes, self.settings.words)

    def decide(self, units: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        total = sum(len(unit["hashes"]) for unit in units)
        ranges = -(-total // AT_ONCE) or 1
        edges = [2**64 * number // ranges for number in range(1, ranges)]
        again: list[list[Array]] = [[] for _ in units]
        places = [[0, *np.searchsorted(unit["hashes"], np.array(edges, dtype=np.uint64)).tolist(), len(unit["hashes"])]
                  for unit in units]  # fmt: skip
        for number in range(ranges):
            slices = [slice(ends[number], ends[number + 1]) for ends in places]
            hashes = np.concatenate([unit["hashes"][part] for unit, part in zip(units, slices, strict=True)])
            order = np.argsort(hashes, kind="stable")
            ordered = hashes[order]
            repeats = order[1:][ordered[1:] == ordered[:-1]]
            start = 0
            for unit, (arrays, part) in enumerate(zip(units, slices, strict=True)):
                count = part.stop - part.start
                own = repeats[(repeats >= start) & (repeats < start + count)] - start
                again[unit].append(arrays["places"][part][own])
                start += count
        for found in again:
            yield {"repeated": np.sort(np.concatenate(found))}

    def settle(self, document: SourceDocument, place: int, decisions: Mapping[str, Array]) -> Removal | None:
        edges = np.array([place << 32, (place + 1) << 32], dtype=np.uint64)
        start, end = np.searchsorted(decisions["repeated"], edges)
        if start == end:
            return None
        runs = (decisions["repeated"][start:end] & np.uint64(0xFFFFFFFF)).tolist()
        _, spans = self.hashes.spans(document.text)
        text, left = without_passages(document.text, spans, runs, self.settings.words)
        if left < self.settings.min_words:
            return Removal("passages seen before")
        document.text = text
        return None


def without_passages(text: str, spans: Sequence[tuple[int, int]], runs: Sequence[int], size: int) -> tuple[str, int]:
    """The text without the passages of `size` words that begin at the words `runs`, and the words that are left."""
    kept, left, word = [], len(spans), 0
    at = 0
    while word < len(runs):
        first = last = runs[word]
        while word < len(runs) and runs[word] <= last + size:
            last = runs[word]
            word += 1
        kept.append(text[at : spans[first][0]].rstrip(" "))
        at = spans[last + size - 1][1]
        left -= last + size - first
    kept.append(text[at:])
    return "".join(kept).strip(), left


class _Runs(Collector):
    """Sorted hashes of all runs of words, each with its place: document and word in 32 bits each."""

    def __init__(self, hashes: WordHashes, words: int):
        self.hashes, self.words = hashes, words
        self.found: list[Array] = []
        self.places: list[Array] = []
        self.documents = 0

    def add(self, document: SourceDocument) -> None:
        runs = window_hashes(self.hashes.of(document.text), self.words)
        self.found.append(runs)
        self.places.append((np.uint64(self.documents << 32)) + np.arange(len(runs), dtype=np.uint64))
        self.documents += 1

    def arrays(self) -> dict[str, Array]:
        empty = np.empty(0, dtype=np.uint64)
        hashes, places = np.concatenate([empty, *self.found]), np.concatenate([empty, *self.places])
        order = np.argsort(hashes, kind="stable")
        return {"hashes": hashes[order], "places": places[order]}


STEP = SubstringDuplicates
