"""Streams: the order in which a training run sees its data, with a cursor that a checkpoint can keep.

The order of an epoch follows from (seed, epoch) alone, so that the cursor is two numbers and a resumed run sees
exactly the batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from quatrain.errors import InputError
from quatrain.text.batches import Batch, TokenExample, windows


class Stream(Protocol):
    """What the trainer asks of a stream."""

    def next(self) -> Any:
        """The examples of the next micro-batch, epoch after epoch without end."""
        ...

    def state(self) -> dict[str, int]:
        """The cursor, as JSON."""
        ...

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on where a cursor says."""
        ...


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch))


class _Epochs:
    """A cursor over an epoch's list of batches; what the batches are, subclasses say."""

    def __init__(self, seed: int):
        self.seed = seed
        self.epoch = self.index = 0
        self._batches: list[Any] | None = None

    def plan(self, epoch: int) -> list[Any]:
        raise NotImplementedError

    def make(self, item: Any) -> Any:
        raise NotImplementedError

    def next(self) -> Any:
        """The next micro-batch; a new epoch is planned when the last one is used up."""
        if self._batches is None:
            self._batches = self.plan(self.epoch)
        if self.index >= len(self._batches):
            self.epoch, self.index = self.epoch + 1, 0
            self._batches = self.plan(self.epoch)
        self.index += 1
        return self.make(self._batches[self.index - 1])

    def state(self) -> dict[str, int]:
        """Epoch, and batches of it already seen."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on at this epoch and batch."""
        self.epoch, self.index, self._batches = state["epoch"], state["index"], None


class WindowStream(_Epochs):
    """Shuffled windows of a long text: each epoch covers it once, its grid of windows shifted by a random offset."""

    def __init__(self, tokens: np.ndarray, *, length: int, rows: int, seed: int):
        if len(tokens) < length + 1:
            raise InputError(
                f"The training text has {len(tokens)} tokens, fewer than one context of {length} + 1. "
                "Use a longer text or a smaller context."
            )
        super().__init__(seed)
        self.tokens, self.length, self.rows = tokens, length, rows

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Starts of the windows, cut into batches of `rows`; a last short batch is filled from the epoch's first."""
        generator = _generator(self.seed, epoch)
        spare = len(self.tokens) - 1
        offset = int(generator.integers(0, min(self.length, spare - self.length + 1)))
        starts = np.arange(offset, spare - self.length + 1, self.length)
        generator.shuffle(starts)
        count = math.ceil(len(starts) / self.rows) * self.rows
        return np.split(np.resize(starts, count), count // self.rows)

    def make(self, item: np.ndarray) -> Batch:
        """The batch of these windows."""
        return windows(self.tokens, item, self.length)


class ExampleStream(_Epochs):
    """Shuffled examples in batches of at most `batch_tokens`, each of similar lengths, so that little is padding."""

    def __init__(self, examples: Sequence[TokenExample], *, batch_tokens: int, seed: int, sort_window: int = 64):
        if not examples:
            raise InputError("There is no training example. Check the data with `quatrain data check`.")
        super().__init__(seed)
        self.examples, self.batch_tokens = examples, batch_tokens
        self.lengths = np.array([len(example) for example in examples])
        self.rows = max(1, batch_tokens // max(1, int(self.lengths.mean())))
        self.sort_window = sort_window

    def plan(self, epoch: int) -> list[list[int]]:
        """Indices of the examples of each batch: shuffled, sorted by length within a window, cut, shuffled again."""
        generator = _generator(self.seed, epoch)
        order = generator.permutation(len(self.examples))
        batches: list[list[int]] = []
        window = self.rows * self.sort_window
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches.extend(self._cut(part))
        generator.shuffle(batches)
        return batches

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for index in order:
            longest = int(self.lengths[index])
            if batches[-1] and longest * (len(batches[-1]) + 1) > self.batch_tokens:
                batches.append([])
            batches[-1].append(int(index))
        return batches

    def make(self, item: list[int]) -> list[TokenExample]:
        """The examples of one batch."""
        return [self.examples[index] for index in item]

    def steps(self, epochs: float, accumulation: int = 1) -> int:
        """Optimizer steps that `epochs` passes over the examples take (at least 1)."""
        whole = sum(len(self.plan(epoch)) for epoch in range(int(epochs)))
        part = (epochs - int(epochs)) * len(self.plan(int(epochs))) if epochs > int(epochs) else 0
        return max(1, round((whole + part) / accumulation))
