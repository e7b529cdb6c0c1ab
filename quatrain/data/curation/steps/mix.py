"""Mixes the sources by their weights, as BloombergGPT mixed 51 % of its domain with 49 % of the web (arXiv 2303.17564).

The total is as large as the weights and `max_copies` allow, or `tokens`. Documents are drawn by a hash of their text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from quatrain.data.curation.arrays import Array
from quatrain.data.curation.document import Removal, SourceDocument, content_key
from quatrain.data.curation.step import Collector, CorpusStep, StepSettings
from quatrain.data.curation.steps.near_duplicates import by_unit


class MixSettings(StepSettings):
    """Each source has a `weight`. `tokens` (words) limits the total; no document is written more than `max_copies`."""

    kind: Literal["mix"] = "mix"
    tokens: int | None = Field(default=None, ge=1)
    max_copies: int = Field(default=1, ge=1, le=100)

    def needs_weights(self, sources: Sequence[Any]) -> list[str]:
        return [source.title for source in sources if source.weight is None]


class Mix(CorpusStep):
    """Draws documents of each source, or repeats them."""

    Settings = MixSettings
    about = "sources in proportion to their weights"
    source = "BloombergGPT, arXiv 2303.17564"
    bytes_per_document = 64

    def collect(self) -> Collector:
        return _Sizes(sorted(self.context.weights or {}), self.context.seed)

    def decide(self, units: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        words, keys, sources = (np.concatenate([unit[name] for unit in units]) for name in ("words", "keys", "sources"))
        weights = np.array([weight for _, weight in sorted((self.context.weights or {}).items())])
        copies = mixed_copies(words, keys, sources, weights / weights.sum(), self.settings)
        yield from by_unit(units, {"copies": copies})

    def settle(self, document: SourceDocument, place: int, decisions: Mapping[str, Array]) -> Removal | None:
        document.copies = int(decisions["copies"][place])
        return None if document.copies else Removal("not drawn")


def mixed_copies(words: Array, keys: Array, sources: Array, weights: Array, settings: MixSettings) -> Array:
    """How often (N,) each document is written."""
    have = np.bincount(sources, words, minlength=len(weights))
    total = min(have[source] * settings.max_copies / weights[source] for source in range(len(weights)))
    total = total if settings.tokens is None else min(total, settings.tokens)
    copies = np.zeros(len(words), dtype=np.int64)
    for source, weight in enumerate(weights):
        own = np.flatnonzero(sources == source)
        if not len(own) or not have[source]:
            continue
        whole, rest = divmod(total * weight, have[source])
        copies[own] = int(whole)
        drawn = own[np.lexsort((own, keys[own]))]
        before = np.cumsum(words[drawn]) - words[drawn]
        copies[drawn[before + words[drawn] / 2 <= rest]] += 1
    result: Array = np.minimum(copies, settings.max_copies).astype(np.uint8)
    return result


class _Sizes(Collector):
    def __init__(self, sources: Sequence[str], seed: int):
        self.numbers = {name: number for number, name in enumerate(sources)}
        self.seed = seed
        self.rows: list[tuple[int, int, int]] = []

    def add(self, document: SourceDocument) -> None:
        key = content_key(f"{self.seed} {document.text}")
        self.rows.append((self.numbers[document.source], len(document.text.split()), key))

    def arrays(self) -> dict[str, Array]:
        sources, words, keys = zip(*self.rows, strict=True) if self.rows else ((), (), ())
        return {
            "sources": np.array(sources, dtype=np.int64),
            "words": np.array(words, dtype=np.int64),
            "keys": np.array(keys, dtype=np.uint64),
        }


STEP = Mix
