"""Streams: the order in which a training run sees its data, with a cursor that a checkpoint can keep.

The order of an epoch follows from (seed, epoch) alone, so that the cursor is two numbers and a resumed run sees
exactly the batches that it would have seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE, TokenBatch, TokenExample, fill_rows, pack_rows, windows
from quatrain.planning.limits import check_tokens


class BatchStream(Protocol):
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


def micro_seeds(stream: BatchStream, seed: int, place: int) -> Any:
    """What an objective that draws is to draw the stream's last micro-batch from: a seed for each of its examples.

    By example where the stream knows them, so that the draws do not depend on how examples are batched; otherwise one
    number for all, from the micro-batch's place in the run.
    """
    own = getattr(stream, "seeds", None)
    return own if own is not None else int(np.random.SeedSequence((abs(seed), place)).generate_state(1)[0])


def of_process(stream: BatchStream, rank: int, size: int) -> BatchStream:
    """The part of a stream that one of several processes reads: every `size`-th micro-batch, from `rank` on."""
    return stream if size == 1 else _ProcessStream(stream, rank, size)


class _ProcessStream:
    """Every process goes through the whole stream: its cursor is the same in all, and serves more or fewer of them."""

    def __init__(self, stream: BatchStream, rank: int, size: int):
        self.stream, self.rank, self.size = stream, rank, size
        self.seeds: Any = None

    def next(self) -> Any:
        """The process's next micro-batch."""
        found = None
        for number in range(self.size):
            if number == self.rank:
                found = self.stream.next()
                self.seeds = getattr(self.stream, "seeds", None)
            else:
                skip = getattr(self.stream, "skip", self.stream.next)
                skip()
        return found

    def state(self) -> dict[str, Any]:
        """The stream's."""
        return self.stream.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The stream's."""
        self.stream.load_state(state)


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
        return self.make(self._advance())

    def skip(self) -> None:
        """Goes past a micro-batch without making it."""
        self._advance()

    def _advance(self) -> Any:
        if self._batches is None:
            self._batches = self.plan(self.epoch)
        if self.index >= len(self._batches):
            self.epoch, self.index = self.epoch + 1, 0
            self._batches = self.plan(self.epoch)
        self.index += 1
        return self._batches[self.index - 1]

    def state(self) -> dict[str, int]:
        """Epoch, and batches of it already seen."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on at this epoch and batch."""
        self.epoch, self.index, self._batches = state["epoch"], state["index"], None


class WindowStream(_Epochs):
    """Shuffled windows of a long text: each epoch covers it once, its grid of windows shifted by a random offset.

    `stride` is the distance of two windows' beginnings, `length` unless given: with a smaller one windows overlap, and
    an epoch learns each token `length / stride` times, each time with another text before it.
    """

    def __init__(self, tokens: np.ndarray, *, length: int, rows: int, seed: int, stride: int | None = None):
        if len(tokens) < length + 1:
            raise InputError(
                f"The training text has {len(tokens)} tokens, fewer than one context of {length} + 1. "
                "Use a longer text or a smaller context."
            )
        check_tokens(rows, length, "A batch")
        super().__init__(seed)
        self.tokens, self.length, self.rows, self.stride = tokens, length, rows, stride or length
        if not 1 <= self.stride <= length:
            raise InputError(f"stride {stride}: must be from 1 to the window's {length} tokens; beyond, some are lost.")

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Starts of the windows, cut into batches of `rows`; a last short batch is filled from the epoch's first."""
        generator = _generator(self.seed, epoch)
        spare = len(self.tokens) - 1
        offset = int(generator.integers(0, min(self.stride, spare - self.length + 1)))
        starts = np.arange(offset, spare - self.length + 1, self.stride)
        generator.shuffle(starts)
        count = math.ceil(len(starts) / self.rows) * self.rows
        return np.split(np.resize(starts, count), count // self.rows)

    def make(self, item: np.ndarray) -> TokenBatch:
        """The batch of these windows."""
        return windows(self.tokens, item, self.length)


class ShuffledStream(_Epochs):
    """Examples of one size, such as images or pairs of words, shuffled, `rows` in a batch; a last short batch counts.

    `seeds` holds (seed, epoch, index) of each example of the last batch, for objectives that draw at random.
    """

    def __init__(self, examples: Sequence[Any], *, rows: int, seed: int):
        if not len(examples) or rows < 1:
            raise InputError(f"{len(examples):,} examples in batches of {rows}: both must be at least 1")
        super().__init__(seed)
        self.examples, self.rows = examples, rows
        self.seeds: list[tuple[int, int, int]] = []

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The numbers of the examples of each batch."""
        order = _generator(self.seed, epoch).permutation(len(self.examples))
        return [order[start : start + self.rows] for start in range(0, len(order), self.rows)]

    def make(self, item: np.ndarray) -> list[Any]:
        """The examples of these numbers."""
        self.seeds = [(abs(self.seed), self.epoch, int(number)) for number in item]
        return [self.examples[number] for number in item]

    def steps(self, epochs: float, accumulation: int) -> int:
        """Optimizer steps of so many epochs."""
        return max(1, round(epochs * math.ceil(len(self.examples) / self.rows) / accumulation))


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
        self.seeds: list[tuple[int, ...]] | None = None

    def plan(self, epoch: int) -> list[list[int]]:
        """Indices of the examples of each batch: shuffled, sorted by length within a window, cut, shuffled again."""
        return _plan(self.lengths, _generator(self.seed, epoch), self.batch_tokens, self.rows * self.sort_window)

    def make(self, item: list[int]) -> list[TokenExample]:
        """The examples of one batch."""
        self.seeds = [(self.seed, self.epoch, index) for index in item]
        return [self.examples[index] for index in item]

    def steps(self, epochs: float, accumulation: int = 1) -> int:
        """Optimizer steps that `epochs` passes over the examples take (at least 1)."""
        whole = sum(len(self.plan(epoch)) for epoch in range(int(epochs)))
        part = (epochs - int(epochs)) * len(self.plan(int(epochs))) if epochs > int(epochs) else 0
        return max(1, round((whole + part) / accumulation))


def _plan(lengths: np.ndarray, generator: np.random.Generator, batch_tokens: int, window: int) -> list[list[int]]:
    """Indices of batches: shuffled, sorted by length within a window, cut at `batch_tokens`, shuffled again."""
    order = generator.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        batches.extend(_cut(part[np.argsort(lengths[part], kind="stable")], lengths, batch_tokens))
    generator.shuffle(batches)
    return batches


def _cut(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for index in order:
        longest = int(lengths[index])
        if batches[-1] and longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(int(index))
    return batches


class PackedStream(_Epochs):
    """Shuffled examples, as many in a row of `length` tokens as fit, none of them seen by another; `rows` a batch.

    What shares a row changes from epoch to epoch: examples are shuffled, and filled into rows `window` at a time.
    """

    def __init__(
        self, examples: Sequence[TokenExample], *, length: int, rows: int, pad_id: int, seed: int, window: int = 4096
    ):
        if not examples:
            raise InputError("There is no training example. Check the data with `quatrain data check`.")
        super().__init__(seed)
        self.examples, self.length, self.rows, self.pad_id, self.window = examples, length, rows, pad_id, window
        self.sizes = np.array([len(example) - 1 for example in examples])
        if (longest := int(self.sizes.max())) > length:
            raise InputError(f"An example of {longest + 1} tokens does not fit a row of {length}; give more context.")

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """For each batch its rows, for each row the numbers of its examples."""
        generator = _generator(self.seed, epoch)
        order = generator.permutation(len(self.sizes))
        rows: list[list[int]] = []
        for start in range(0, len(order), self.window):
            part = order[start : start + self.window]
            filled = fill_rows(self.sizes[part].tolist(), self.length)
            rows.extend([int(part[number]) for number in row] for row in filled)
        shuffled = [rows[place] for place in generator.permutation(len(rows))]
        return [shuffled[start : start + self.rows] for start in range(0, len(shuffled), self.rows)]

    def make(self, item: list[list[int]]) -> TokenBatch:
        """The batch of these rows."""
        rows = [[self.examples[number] for number in row] for row in item]
        return pack_rows(rows, self.length, self.pad_id)

    def steps(self, epochs: float, accumulation: int = 1) -> int:
        """Optimizer steps that `epochs` passes over the examples take (at least 1)."""
        return max(1, round(epochs * len(self.plan(0)) / accumulation))


class StreamedExamples:
    """Shuffled examples of a source that is read through and never held: a block of `buffer` examples at a time.

    `read(start)` iterates the source's examples from number `start` on. Each epoch begins its blocks at another place,
    so that what shares a block changes. The order follows from (seed, epoch, block): the cursor is three numbers, and a
    resumed run reads from the beginning of its block.
    """

    def __init__(
        self,
        read: Callable[[int], Iterable[Any]],
        *,
        batch_tokens: int,
        seed: int,
        buffer: int = 4096,
        sort_window: int = 64,
    ):
        self.read, self.batch_tokens, self.seed = read, batch_tokens, seed
        self.buffer, self.sort_window = buffer, sort_window
        self.epoch = self.start = self.index = 0
        self.seeds: list[tuple[int, ...]] | None = None
        self._source: Iterator[Any] | None = None
        self._block: list[Any] = []
        self._batches: list[list[int]] | None = None

    def next(self) -> list[Any]:
        """The examples of the next micro-batch. Raises InputError where the source has none."""
        if self._batches is None:
            self._fill()
        while self._batches is not None and self.index >= len(self._batches):
            self.start, self.index = self.start + len(self._block), 0
            self._fill()
        self.index += 1
        item = (self._batches or [])[self.index - 1]
        self.seeds = [(self.seed, self.epoch, self.start + number) for number in item]
        return [self._block[number] for number in item]

    def _fill(self) -> None:
        """Reads the block that begins at `start`, or the next epoch's first where the source has ended."""
        if self._source is None:
            self._source = iter(self.read(self.start))
        # The first block of an epoch is cut short by a random length: its blocks then begin elsewhere.
        size = self.buffer if self.start else int(_generator(self.seed, self.epoch).integers(1, self.buffer + 1))
        self._block = list(itertools.islice(self._source, size))
        if not self._block:
            if not self.start:
                raise InputError("There is no training example. Check the data with `quatrain data check`.")
            self.epoch, self.start, self._source = self.epoch + 1, 0, None
            self._fill()
            return
        lengths = np.array([len(example) for example in self._block])
        rows = max(1, self.batch_tokens // max(1, int(lengths.mean())))
        generator = np.random.default_rng((self.seed, self.epoch, self.start))
        self._batches = _plan(lengths, generator, self.batch_tokens, rows * self.sort_window)

    def state(self) -> dict[str, int]:
        """Epoch, the number of its example with which the block begins, and batches of the block already seen."""
        return {"epoch": self.epoch, "start": self.start, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on there."""
        self.epoch, self.start, self.index = state["epoch"], state["start"], state["index"]
        self._source, self._block, self._batches = None, [], None


class CopyStream:
    """Random tokens said twice, the second time learned: nothing but copying foretells them.

    Attention heads that look up what followed a token before (induction heads, Olsson et al. 2022, arXiv 2209.11895)
    are slow to form from text, which word frequencies explain so much of. On this stream they form within minutes.
    Sequences of 2 to 8 tokens, as names and numbers are; `separator` parts and ends them.
    """

    def __init__(self, tokens: Sequence[int], separator: int, *, length: int, rows: int, seed: int):
        check_tokens(rows, length, "A batch")
        self.tokens, self.separator = np.asarray(tokens, dtype=np.int64), separator
        self.length, self.rows, self.seed = length, rows, seed
        self.index = 0

    def next(self) -> TokenBatch:
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
        return TokenBatch.of(inputs, labels)

    def state(self) -> dict[str, int]:
        """Batches already seen."""
        return {"index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on at this batch."""
        self.index = state["index"]


class AlternatingStream:
    """One stream for its first `count` micro-batches, then another, with one of the first after each `every` - 1."""

    def __init__(self, first: BatchStream, count: int, second: BatchStream, *, every: int = 0):
        self.first, self.count, self.second, self.every = first, count, second, every
        self.seen = 0
        self.seeds: Any = None

    def next(self) -> Any:
        """The next micro-batch of the stream whose turn it is."""
        self.seen += 1
        again = bool(self.every) and (self.seen - self.count) % self.every == 0
        stream = self.first if self.seen <= self.count or again else self.second
        found = stream.next()
        self.seeds = getattr(stream, "seeds", None)
        return found

    def state(self) -> dict[str, Any]:
        """Micro-batches seen, and both cursors."""
        return {"seen": self.seen, "first": self.first.state(), "second": self.second.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where both cursors say."""
        self.seen = state["seen"]
        self.first.load_state(state["first"])
        self.second.load_state(state["second"])
