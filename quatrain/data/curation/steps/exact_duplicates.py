"""Removes documents whose text is that of another, up to case and white space; the first copy stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from quatrain.data.curation.arrays import Array
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Collector, CorpusStep, StepSettings


class ExactDuplicatesSettings(StepSettings):
    """`exactly`: byte for byte, instead of up to case and white space."""

    kind: Literal["exact_duplicates"] = "exact_duplicates"
    exactly: bool = False


class ExactDuplicates(CorpusStep):
    """Compares 128-bit hashes of all texts."""

    Settings = ExactDuplicatesSettings
    about = "one copy of each text"
    bytes_per_document = 56

    def collect(self) -> Collector:
        return _Hashes(self.settings.exactly)

    def decide(self, units: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        hashes = np.concatenate([unit["hashes"] for unit in units])
        order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
        ordered = hashes[order]
        same = np.zeros(len(hashes), dtype=bool)
        same[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
        place = 0
        for unit in units:
            count = len(unit["hashes"])
            yield {"duplicate": same[place : place + count]}
            place += count

    def settle(self, document: SourceDocument, place: int, decisions: Mapping[str, Array]) -> Removal | None:
        return Removal("a copy") if decisions["duplicate"][place] else None


class _Hashes(Collector):
    def __init__(self, exactly: bool):
        self.exactly = exactly
        self.digests: list[bytes] = []

    def add(self, document: SourceDocument) -> None:
        text = document.text if self.exactly else " ".join(document.text.split()).casefold()
        self.digests.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())

    def arrays(self) -> dict[str, Array]:
        return {"hashes": np.frombuffer(b"".join(self.digests), dtype=np.uint64).reshape(-1, 2)}


STEP = ExactDuplicates
