"""Batch streams: the order of the training data, with a cursor that a checkpoint stores.

The order of an epoch depends on (seed, epoch) alone, so that the cursor is two numbers and a resumed run reads exactly
the batches that it would have read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, fill_rows, pack_rows, windows
from quatrain.planning.limits import check_tokens


class BatchStream(Protocol):
    """What the trainer needs of a stream.

    A stream that makes its data during the run may also have `tensors()` and `load_tensors(tensors)`, which a
    checkpoint stores beside its state, and `take_metrics()`: the metrics of data made since the last call, {} if none.
    """

    def next(self) -> Any:
        """The examples of the next micro-batch; a new epoch follows the last one without end."""
        ...

    def state(self) -> dict[str, Any]:
        """The cursor as JSON."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a cursor."""
        ...


def micro_seeds(stream: BatchStream, seed: int, place: int) -> Any:
    """The seeds for an objective with random draws, for the stream's last micro-batch.

    One seed per example if the stream has them, so that draws do not depend on the batching; otherwise one number for
    all, from the position of the micro-batch in the run.
    """
    seeds = getattr(stream, "seeds", None)
    return seeds if seeds is not None else int(np.random.SeedSequence((abs(seed), place)).generate_state(1)[0])


def of_process(stream: BatchStream, rank: int, size: int) -> BatchStream:
    """The micro-batches of one of several processes: every `size`-th one, starting with number `rank`."""
    return stream if size == 1 else _ProcessStream(stream, rank, size)


class _ProcessStream:
    """Every process advances through the whole stream, so that the cursor is the same for any number of processes."""

    def __init__(self, stream: BatchStream, rank: int, size: int):
        self.stream, self.rank, self.size = stream, rank, size
        self.seeds: Any = None

    def next(self) -> Any:
        batch = None
        for number in range(self.size):
            if number == self.rank:
                batch = self.stream.next()
                self.seeds = getattr(self.stream, "seeds", None)
            else:
                skip = getattr(self.stream, "skip", self.stream.next)
                skip()
        return batch

    def state(self) -> dict[str, Any]:
        return self.stream.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.stream.load_state(state)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch))


class _Epochs:
    """A cursor over the batches of an epoch; subclasses define the batches."""

    def __init__(self, seed: int):
        self.seed = seed
        self.epoch = self.index = 0
        self._batches: list[Any] | None = None

    def plan(self, epoch: int) -> list[Any]:
        raise NotImplementedError

    def make(self, item: Any) -> Any:
        raise NotImplementedError

    def next(self) -> Any:
        """The next micro-batch; a new epoch is planned at the end of the last one."""
        return self.make(self._advance())

    def skip(self) -> None:
        """Advance past a micro-batch without building it."""
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
        """The epoch, and the number of its batches already read."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        self.epoch, self.index, self._batches = state["epoch"], state["index"], None


class WindowStream(_Epochs):
    """Shuffled windows of a long text. Each epoch covers the text once, with windows shifted by a random offset.

    `stride` is the distance between the starts of two windows, by default `length`. With a smaller stride windows
    overlap, and an epoch learns each token `length / stride` times, each time with a different context.
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
            raise InputError(f"stride {stride}: must be from 1 to the {length} of a window; more would skip tokens.")

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The starts of the windows in batches of `rows`; the last batch is filled up with the first windows."""
        generator = _generator(self.seed, epoch)
        spare = len(self.tokens) - 1
        offset = int(generator.integers(0, min(self.stride, spare - self.length + 1)))
        starts = np.arange(offset, spare - self.length + 1, self.stride)
        generator.shuffle(starts)
        count = math.ceil(len(starts) / self.rows) * self.rows
        return np.split(np.resize(starts, count), count // self.rows)

    def make(self, item: np.ndarray) -> TokenBatch:
        return windows(self.tokens, item, self.length)


class Carry:
    """The model's state after the tokens that it has read of several texts; None at their beginning.

    The stream and its batches share one object, on every device: what the objective puts there, the stream stores.
    """

    def __init__(self, state: Any = None):
        self.state = state


@dataclass(frozen=True)
class CarriedBatch(TokenBatch):
    """The next tokens of several texts, and the state after those before them, which the objective replaces."""

    carry: Carry | None = None


class CarriedStream:
    """A long text in `rows` parts that are read side by side, `length` tokens of each in a batch, in their order.

    A recurrent model carries its state from one batch to the next, and back-propagates within each: truncated
    back-propagation through time (Williams and Peng 1990). An epoch begins at a random offset. The state is stored in
    checkpoints.
    """

    def __init__(self, tokens: np.ndarray, *, length: int, rows: int, seed: int):
        if len(tokens) < rows * 2:
            raise InputError(
                f"The training text has {len(tokens)} tokens, too few for {rows} rows that are read side by side. "
                "Use a longer text or smaller train.batch_tokens."
            )
        check_tokens(rows, length, "A batch")
        self.tokens, self.length, self.rows, self.seed = tokens, length, rows, seed
        self.epoch = self.index = 0
        self.carry = Carry()

    @property
    def part(self) -> int:
        """Predicted tokens of each row in an epoch."""
        return (len(self.tokens) - 1) // self.rows

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.part / self.length)

    def next(self) -> CarriedBatch:
        """The next tokens of each row; the last batch of an epoch is shorter."""
        if self.index >= self.batches:
            self.epoch, self.index, self.carry = self.epoch + 1, 0, Carry()
        spare = len(self.tokens) - 1 - self.part * self.rows
        offset = int(_generator(self.seed, self.epoch).integers(0, spare + 1))
        begin = self.index * self.length
        size = min(self.length, self.part - begin)
        starts = offset + begin + self.part * np.arange(self.rows)
        batch = windows(self.tokens, starts, size)
        self.index += 1
        return CarriedBatch(batch.inputs, batch.labels, self.carry)

    def state(self) -> dict[str, int]:
        """The epoch, and the number of its batches already read."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        self.epoch, self.index, self.carry = state["epoch"], state["index"], Carry()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The model's state: the parts of each layer."""
        layers = self.carry.state or ()
        return {
            f"{layer}.{part}": tensor.cpu() for layer, parts in enumerate(layers) for part, tensor in enumerate(parts)
        }

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores it."""
        layers: dict[int, dict[int, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            layer, part = map(int, name.split("."))
            layers.setdefault(layer, {})[part] = tensor
        state = [tuple(layers[layer][part] for part in sorted(layers[layer])) for layer in sorted(layers)]
        self.carry = Carry(state or None)


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
        """The indices of the examples of each batch."""
        order = _generator(self.seed, epoch).permutation(len(self.examples))
        return [order[start : start + self.rows] for start in range(0, len(order), self.rows)]

    def make(self, item: np.ndarray) -> list[Any]:
        self.seeds = [(abs(self.seed), self.epoch, int(number)) for number in item]
        return [self.examples[number] for number in item]

    def steps(self, epochs: float, accumulation: int) -> int:
        """The number of optimizer steps in `epochs` epochs (at least 1)."""
        return max(1, round(epochs * math.ceil(len(self.examples) / self.rows) / accumulation))


class ExampleStream(_Epochs):
    """Shuffled examples in batches of at most `batch_tokens`, of similar lengths to limit padding."""

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
        """The indices of each batch; see `_plan`."""
        return _plan(self.lengths, _generator(self.seed, epoch), self.batch_tokens, self.rows * self.sort_window)

    def make(self, item: list[int]) -> list[TokenExample]:
        self.seeds = [(self.seed, self.epoch, index) for index in item]
        return [self.examples[index] for index in item]

    def steps(self, epochs: float, accumulation: int = 1) -> int:
        """Optimizer steps that `epochs` passes over the examples take (at least 1)."""
        whole = sum(len(self.plan(epoch)) for epoch in range(int(epochs)))
        part = (epochs - int(epochs)) * len(self.plan(int(epochs))) if epochs > int(epochs) else 0
        return max(1, round((whole + part) / accumulation))


def _plan(lengths: np.ndarray, generator: np.random.Generator, batch_tokens: int, window: int) -> list[list[int]]:
    """Indices of batches: shuffled, sorted by length within a window, cut at `batch_tokens`, and shuffled again."""
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
    """Shuffled examples packed into rows of `length` tokens, without attention between examples; `rows` per batch.

    The packing changes every epoch: examples are shuffled, and packed `window` examples at a time.
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
            raise InputError(f"An example of {longest + 1} tokens does not fit a row of {length}; use more context.")

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """For each batch its rows, for each row the indices of its examples."""
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
        rows = [[self.examples[number] for number in row] for row in item]
        return pack_rows(rows, self.length, self.pad_id)

    def steps(self, epochs: float, accumulation: int = 1) -> int:
        """Optimizer steps that `epochs` passes over the examples take (at least 1)."""
        return max(1, round(epochs * len(self.plan(0)) / accumulation))


class StreamedExamples:
    """Shuffled examples of a source that does not fit in memory, shuffled in blocks of `buffer` examples.

    `read(start)` iterates over the source's examples from index `start`. Blocks begin at different places in each
    epoch, so that their examples change. The order depends on (seed, epoch, block): the cursor is three numbers, and a
    resumed run reads from the start of its block.
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
        """The examples of the next micro-batch. Raises InputError if the source is empty."""
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
        """Read the block at `start`, or the first block of the next epoch at the end of the source."""
        if self._source is None:
            self._source = iter(self.read(self.start))
        # The first block of an epoch gets a random length, which shifts all later blocks.
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
        """The epoch, the index of the first example of the block, and the batches of the block already read."""
        return {"epoch": self.epoch, "start": self.start, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        self.epoch, self.start, self.index = state["epoch"], state["start"], state["index"]
        self._source, self._block, self._batches = None, [], None


class CopyStream:
    """Repeated random sequences; only the repetition is learned, and only copying can predict it.

    Attention heads that look up what followed an earlier occurrence of a token (induction heads, Olsson et al. 2022,
    arXiv 2209.11895) form slowly on text, where word frequencies explain so much. On this stream they form within
    minutes. Sequences have 2 to 8 tokens, like names and numbers; `separator` follows each of them.
    """

    def __init__(self, tokens: Sequence[int], separator: int, *, length: int, rows: int, seed: int):
        check_tokens(rows, length, "A batch")
        self.tokens, self.separator = np.asarray(tokens, dtype=np.int64), separator
        self.length, self.rows, self.seed = length, rows, seed
        self.index = 0

    def next(self) -> TokenBatch:
        """The next batch (rows, length); batch i depends on (seed, i) alone."""
        generator = _generator(self.seed, self.index)
        self.index += 1
        ids = np.empty((self.rows, self.length + 1), dtype=np.int64)
        learned = np.zeros(ids.shape, dtype=bool)
        for row, mask in zip(ids, learned, strict=True):
            place = 0
            while place < len(row):
                sequence = generator.choice(self.tokens, generator.integers(2, 9))
                twice = np.concatenate([sequence, [self.separator], sequence, [self.separator]])
                room = min(len(twice), len(row) - place)
                row[place : place + room] = twice[:room]
                mask[place + len(sequence) + 1 : place + room] = True
                place += room
        inputs, labels = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())
        labels[torch.from_numpy(~learned[:, 1:])] = IGNORE_INDEX
        return TokenBatch.of(inputs, labels)

    def state(self) -> dict[str, int]:
        return {"index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        self.index = state["index"]


class AlternatingStream:
    """The first stream for `count` micro-batches, then the second, with every `every`-th one from the first again."""

    def __init__(self, first: BatchStream, count: int, second: BatchStream, *, every: int = 0):
        self.first, self.count, self.second, self.every = first, count, second, every
        self.seen = 0
        self.seeds: Any = None

    def next(self) -> Any:
        """The next micro-batch of the stream that is due."""
        self.seen += 1
        again = bool(self.every) and (self.seen - self.count) % self.every == 0
        stream = self.first if self.seen <= self.count or again else self.second
        micro_batch = stream.next()
        self.seeds = getattr(stream, "seeds", None)
        return micro_batch

    def state(self) -> dict[str, Any]:
        """The number of micro-batches read, and both cursors."""
        return {"seen": self.seen, "first": self.first.state(), "second": self.second.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        self.first.load_state(state["first"])
        self.second.load_state(state["second"])


class TextRowStream(_Epochs):
    """Shuffled rows (B, length) of a text of ids whose words are drawn anew each epoch.

    `read(generator)` gives the ids of an epoch, which are cut into rows, or the rows themselves. -1 fills up a row.
    """

    def __init__(self, read: Callable[[np.random.Generator], np.ndarray], *, length: int, rows: int, seed: int):
        super().__init__(seed)
        self.read, self.length, self.rows = read, length, rows
        self._text = np.zeros((0, length), dtype=np.int64)

    def plan(self, epoch: int) -> list[Any]:
        generator = _generator(self.seed, epoch)
        ids = self.read(generator)
        if not len(ids):
            raise InputError("no words are left of so small a text; set sample = 0, which thins out none, or add text")
        if ids.ndim == 1:
            padded = np.full(-(-len(ids) // self.length) * self.length, -1, dtype=np.int64)
            padded[: len(ids)] = ids
            ids = padded.reshape(-1, self.length)
        self._text = ids
        order = generator.permutation(len(ids))
        return [order[start : start + self.rows] for start in range(0, len(order), self.rows)]

    def make(self, item: Any) -> np.ndarray:
        found: np.ndarray = self._text[item]
        return found


class ArrayStream(_Epochs):
    """Shuffled rows of several arrays of equal length: `next` gives their parts, `rows` of each."""

    def __init__(self, arrays: Sequence[np.ndarray], *, rows: int, seed: int):
        super().__init__(seed)
        self.arrays, self.rows = arrays, rows

    def plan(self, epoch: int) -> list[Any]:
        order = _generator(self.seed, epoch).permutation(len(self.arrays[0]))
        return [order[start : start + self.rows] for start in range(0, len(order), self.rows)]

    def make(self, item: Any) -> list[np.ndarray]:
        return [array[item] for array in self.arrays]
