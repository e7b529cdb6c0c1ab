"""Suites over the records of a task (classes, tags, answers, texts), read as the task's stages read them.

The training part of a catalog's data is found by its name (sst2-test, sst2-train), so that baselines learn from the
same examples as a model. `SUITE:FILE` has none unless `train` names one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar

from quatrain.core.errors import InputError
from quatrain.data import catalog
from quatrain.data.corpus import Corpus
from quatrain.data.records import Row
from quatrain.evaluation.suite import Suite
from quatrain.tasks.kinds import RECORD_TASKS
from quatrain.tasks.records import placed

_PART = re.compile(r"-(test|dev|validation|valid)\b")


class RecordSuite(Suite):
    """A suite whose examples are records of a task."""

    extra: ClassVar[tuple[str, ...]] = ("train",)
    task: ClassVar[str]
    """The task of records, by its name in recipes."""

    def __init__(self, source: str | None = None, *, train: str | None = None, **options: Any):
        own = source or self.data or ""
        guessed = _PART.sub("-train", own) if _PART.search(own) else None
        if train is None and guessed is not None and catalog.find(guessed) is not None:
            train = guessed
        self.trained_on = train
        # Worked examples are drawn from what baselines learn from.
        self.examples_data = train  # type: ignore[misc]
        super().__init__(source, **options)
        self._training: list[Row] | None = None

    def parse(self, value: Mapping[str, Any]) -> Any:
        return value

    def rows_of(self, source: str, limit: int | None = None) -> list[Row]:
        corpus = Corpus(source, format=RECORD_TASKS[self.task].format)
        rows = list(islice(placed(corpus), limit))
        faults = [f"{row.place}: {row.fault}" for row in rows if row.fault is not None]
        if faults:
            raise InputError(f"{source} cannot be read for {self.name}:", faults[:20])
        if not rows:
            raise InputError(f"{source} has no examples for {self.name}")
        return rows

    def training(self) -> list[Row]:
        """The examples that baselines learn from; [] where none are known."""
        if self.trained_on is None:
            return []
        if self._training is None:
            self._training = self.rows_of(self.trained_on)
        return self._training

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"train": self.trained_on}
