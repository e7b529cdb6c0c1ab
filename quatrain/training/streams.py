"""Streams: the order in which a training run sees its data, with a cursor that a checkpoint can keep.

The order of an epoch follows from (seed, epoch) alone, so that the cursor is two numbers and a resumed run sees
exactly the batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from quatrain.errors import InputError
from quatrain.text.batches import IGNORE, Batch, TokenExample, windows


class Stream(Protocol):
    """What the trainer asks of a stream."""

    def next(self) -> Any:
        """The examples of the next micro-batch, epoch after epoch without end."""
        ...

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
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


class CopyStream:
    """Random tokens said twice, the second time learned: nothing but copying foretells them.

    Attention heads that look up what followed a token before (induction heads, Olsson et al. 2022, arXiv 2209.11895)
    are slow to form from text, which word frequencies explain so much of. On this stream they form within minutes.
    Sequences of 2 to 8 tokens, as names and numbers are; `separator` parts and ends them.
    """

    def __init__(self, tokens: Sequence[int], separator: int, *, length: int, rows: int, seed: int):
        self.tokens, self.separator = np.asarray(tokens, dtype=np.int64), separator
        self.length, self.rows, self.seed = length, rows, seed
        self.index = 0

    def next(self) -> Batch:
        """The next batch (rows, length); batch number i follows from (seed, i) alone."""
        generator = _generator(self.seed, self.index)
        self.index += 1
        ids = np.empty((self.rows, self.length + 1), dtype=np.int64)
        learned = np.zeros(ids.shape, dtype=bool)
        for row, mask in zip(ids, learned, strict=True):
            place = 0
            while place < len(row):
                said = generator.choice(self.tokens, generator.integers(2, 9))
                twice = np.concatenate([said, [self.separator], said, [self.separator]])
                room = min(len(twice), len(row) - place)
                row[place : place + room] = twice[:room]
                mask[place + len(said) + 1 : place + room] = True
                place += room
        inputs, labels = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())
        labels[torch.from_numpy(~learned[:, 1:])] = IGNORE
        return Batch(inputs, labels)

    def state(self) -> dict[str, int]:
        """Batches already seen."""
        return {"index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on at this batch."""
        self.index = state["index"]


class InTurn:
    """One stream for its first `count` micro-batches, then another, with one of the first after each `every` - 1."""

    def __init__(self, first: Stream, count: int, second: Stream, *, every: int = 0):
        self.first, self.count, self.second, self.every = first, count, second, every
        self.seen = 0

    def next(self) -> Any:
        """The next micro-batch of the stream whose turn it is."""
        self.seen += 1
        again = bool(self.every) and (self.seen - self.count) % self.every == 0
        return self.first.next() if self.seen <= self.count or again else self.second.next()

    def state(self) -> dict[str, Any]:
        """Micro-batches seen, and both cursors."""
        return {"seen": self.seen, "first": self.first.state(), "second": self.second.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where both cursors say."""
        self.seen = state["seen"]
        self.first.load_state(state["first"])
        self.second.load_state(state["second"])
