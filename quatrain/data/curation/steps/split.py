"""Splits documents into train, validation and test, with texts that share passages on one side.

Near copies across a split let a model recite what it is measured on. Documents that MinHash links at a low threshold
are one group, and a hash of the group decides where all of it goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.data.curation.arrays import Array
from quatrain.data.curation.document import Removal, SourceDocument, content_key
from quatrain.data.curation.step import Collector, CorpusStep, StepSettings
from quatrain.data.curation.steps.near_duplicates import Signatures, by_unit, connected

NAMES = ("train", "validation", "test")


class SplitSettings(StepSettings):
    """Shares of the documents. Texts of a similarity of at least `threshold` are on one side."""

    kind: Literal["split"] = "split"
    validation: float = Field(default=0.01, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    ngram: int = Field(default=5, ge=1, le=50)
    bands: int = Field(default=32, ge=1, le=256)
    rows: int = Field(default=4, ge=1, le=64)
    threshold: float = Field(default=0.4, gt=0, le=1)

    def conflicts(self) -> Iterator[Problem]:
        if self.validation + self.test >= 1:
            yield Problem(("validation",), f"{self.validation:g} + test = {self.test:g}; nothing is left for train")


class Split(CorpusStep):
    """Gives each document a split."""

    Settings = SplitSettings
    about = "train, validation and test, near copies on one side"
    word_tables = ("hashes",)
    bytes_per_document = 80
    disk_per_word = 1

    def collect(self) -> Collector:
        return Signatures(self.settings.ngram, self.settings.bands * self.settings.rows, self.context.seed)

    def decide(self, units: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        settings = self.settings
        groups = connected(units, settings.bands, settings.rows, settings.threshold, self.context)
        keys = np.concatenate([unit["keys"] for unit in units])
        # The smallest key of a group stands for it, so that the order of the input does not matter.
        least = np.full(len(keys), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(least, groups, keys)
        draws = {key: content_key(f"{self.context.seed} {key}") / 2**64 for key in set(least[groups].tolist())}
        edges = (1 - settings.validation - settings.test, 1 - settings.test)
        sides = [sum(draws[key] >= edge for edge in edges) for key in least[groups].tolist()]
        yield from by_unit(units, {"side": np.array(sides, dtype=np.uint8)})

    def settle(self, document: SourceDocument, place: int, decisions: Mapping[str, Array]) -> Removal | None:
        document.split = NAMES[int(decisions["side"][place])]
        return None


STEP = Split
