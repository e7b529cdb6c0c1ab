"""Removes near copies: texts that share most runs of words (MinHash, Broder 1997; LSH, Indyk and Motwani 1998).

Every run of `ngram` words of a text is hashed; `bands * rows` minima of these hashes estimate the Jaccard similarity of
two texts. Texts whose minima agree in a whole band are compared, and linked if the estimate reaches `threshold`. Of all
texts that links connect, the longest stays, so that the order of the input does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

from quatrain.core.libraries import require
from quatrain.data.curation.arrays import Array, join_arrays
from quatrain.data.curation.document import Removal, SourceDocument, content_key
from quatrain.data.curation.step import Collector, CorpusStep, StepContext, StepSettings
from quatrain.data.curation.words import window_hashes, word_hashes

BLOCK = 1_000_000
"""Runs of words whose minima are computed at once."""
PAIRS = 50_000
"""Pairs that are compared at once."""
ALL_PAIRS = 30
"""In a group of at most so many texts all are compared; in a larger one each with the first and with its neighbour."""


class NearDuplicatesSettings(StepSettings):
    """The defaults find nine of ten pairs of similarity 0.7, and all above 0.8."""

    kind: Literal["near_duplicates"] = "near_duplicates"
    ngram: int = Field(default=5, ge=1, le=50, description="words of a run")
    bands: int = Field(default=16, ge=1, le=256)
    rows: int = Field(default=8, ge=1, le=64)
    threshold: float = Field(default=0.7, gt=0, le=1)


class NearDuplicates(CorpusStep):
    """Keeps one of each group of near copies."""

    Settings = NearDuplicatesSettings
    about = "one copy of texts that are nearly equal"
    source = "MinHash, Broder 1997"
    word_tables = ("hashes",)
    bytes_per_document = 80
    disk_per_word = 1

    def collect(self) -> Collector:
        return Signatures(self.settings.ngram, self.settings.bands * self.settings.rows, self.context.seed)

    def decide(self, units: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        groups = connected(units, self.settings.bands, self.settings.rows, self.settings.threshold, self.context)
        words = np.concatenate([unit["words"] for unit in units])
        keys = np.concatenate([unit["keys"] for unit in units])
        # In each group: the longest first, then by content.
        order = np.lexsort((np.arange(len(keys)), keys, -words.astype(np.int64), groups))
        duplicate = np.zeros(len(keys), dtype=bool)
        duplicate[order[1:]] = groups[order[1:]] == groups[order[:-1]]
        yield from by_unit(units, {"duplicate": duplicate})

    def settle(self, document: SourceDocument, place: int, decisions: Mapping[str, Array]) -> Removal | None:
        return Removal("a near copy") if decisions["duplicate"][place] else None


def by_unit(units: Sequence[Mapping[str, Array]], values: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Values (N,) of all documents, unit by unit."""
    ends = np.cumsum([0, *(len(unit["keys"]) for unit in units)]).tolist()
    for start, end in pairwise(ends):
        yield {name: value[start:end] for name, value in values.items()}


class Signatures(Collector):
    """The minima of each document (N, P) uint32, its number of words, and its key."""

    def __init__(self, ngram: int, permutations: int, seed: int):
        with require("the step near_duplicates", "rensa", "data"):
            from rensa import RMinHash
        self.digest = RMinHash.digest_matrix_from_flat_token_hashes
        self.ngram, self.permutations, self.seed = ngram, permutations, seed
        self.hashes = word_hashes()
        self.waiting: list[Array] = []
        self.size = 0
        self.rows: list[Array] = []
        self.words: list[int] = []
        self.keys: list[int] = []

    def add(self, document: SourceDocument) -> None:
        words = self.hashes.of(document.text)
        self.words.append(len(words))
        self.keys.append(content_key(document.text))
        runs = np.unique(window_hashes(words, max(1, min(self.ngram, len(words)))))
        if not len(runs):  # a text of marks alone is only equal to itself
            runs = np.array([self.keys[-1]], dtype=np.uint64)
        self.waiting.append(runs)
        self.size += len(runs)
        if self.size >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        offsets = np.cumsum([0, *map(len, self.waiting)]).astype(np.uint64)
        matrix = self.digest(np.concatenate(self.waiting), offsets, self.permutations, self.seed)
        self.rows.append(np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(self.waiting), self.permutations))
        self.waiting, self.size = [], 0

    def arrays(self) -> dict[str, Array]:
        self._flush()
        empty = np.empty((0, self.permutations), dtype=np.uint32)
        return {
            "minima": np.concatenate([empty, *self.rows]),
            "words": np.array(self.words, dtype=np.uint32),
            "keys": np.array(self.keys, dtype=np.uint64),
        }


def connected(
    units: Sequence[Mapping[str, Array]], bands: int, rows: int, threshold: float, context: StepContext
) -> Array:
    """The group (N,) int64 of each document of all units: the smallest number of a document that links lead to.

    One band is in memory at a time; the minima stay on disk.
    """
    if not any(len(unit["keys"]) for unit in units):
        return np.empty(0, dtype=np.int64)
    minima = join_arrays(context.folder, "minima", (unit["minima"] for unit in units))
    parents = np.arange(len(minima), dtype=np.int64)
    for band in range(bands):
        keys = np.concatenate([band_keys(unit["minima"], band, rows) for unit in units])
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else keys
        ends = np.append(starts[1:], len(keys))
        pairs: list[tuple[int, int]] = []
        for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
            for pair in candidate_pairs(order[start:end].tolist()):
                if root(parents, pair[0]) != root(parents, pair[1]):
                    pairs.append(pair)
            if len(pairs) >= PAIRS:
                link(parents, minima, pairs, threshold)
                pairs = []
        link(parents, minima, pairs, threshold)
    return np.array([root(parents, place) for place in range(len(parents))], dtype=np.int64)


def band_keys(minima: Array, band: int, rows: int) -> Array:
    """One key (N,) uint64 for the minima of a band."""
    result = np.zeros(len(minima), dtype=np.uint64)
    for column in range(band * rows, (band + 1) * rows):
        result = (result ^ (result >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15) + minima[:, column]
    return result


def candidate_pairs(group: list[int]) -> Iterator[tuple[int, int]]:
    """The pairs of a group to compare."""
    if len(group) <= ALL_PAIRS:
        for number, one in enumerate(group):
            for other in group[number + 1 :]:
                yield one, other
        return
    for before, after in pairwise(group):
        yield before, after
        yield group[0], after


def link(parents: Array, minima: Array, pairs: Sequence[tuple[int, int]], threshold: float) -> None:
    """Links the pairs whose estimated similarity reaches the threshold."""
    if not pairs:
        return
    both = np.array(pairs)
    similar = (minima[both[:, 0]] == minima[both[:, 1]]).mean(axis=1) >= threshold
    for one, other in both[similar].tolist():
        first, second = root(parents, one), root(parents, other)
        parents[max(first, second)] = min(first, second)


def root(parents: Any, place: int) -> int:
    """The document that a chain of links leads to; the chain is halved on the way."""
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return int(place)


STEP = NearDuplicates
