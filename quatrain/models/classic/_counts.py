"""Counts of n-grams: sorted tables of a trie, built in chunks with bounded memory.

An n-gram is its context, an n-gram shorter by one, and its last token. Table `k` stores the n-grams of `k` tokens as
keys `context * V + token`, sorted, where `context` is the place of the context in table `k - 1`. A key fits into 64
bits for any vocabulary and order, and the n-grams that continue one context are neighbours.

The tokens are read once for each order, a chunk at a time. A chunk's keys are sorted and counted in memory; the sorted
runs are merged by ranges of keys (an external merge sort). Besides the tables, memory holds one chunk
(`BYTES_PER_TOKEN` for each of its tokens); places and runs are in files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.planning.machine import available_memory

BYTES_PER_TOKEN = 64
"""Memory for each token of a chunk while it is sorted."""
BYTES_PER_NGRAM = 48
"""Memory for each n-gram of the largest table while probabilities are estimated."""
BYTES_STORED = 28
"""Memory for each n-gram of all tables: key, count, place of its suffix, probability and weight."""
CHUNK = 4_000_000
"""Tokens of a chunk by default."""
SAMPLE = 1_000_000
"""Tokens of the beginning from which the n-grams of a long text are estimated."""
MOST_NGRAMS = 2**62
"""Bound of a key."""

Array = np.ndarray


@dataclass
class Table:
    """The n-grams of one length, sorted by key.

    `keys` (N,) int64, `counts` (N,) int64, and `suffix` (N,) int64: the place in the table before of the n-gram without
    its first token.
    """

    keys: Array
    counts: Array
    suffix: Array

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Array) -> Array:
        """The place of each key, -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


@dataclass
class NgramCounts:
    """Counts of all n-grams up to an order. `tables[k - 1]` holds those of `k` tokens; table 1 has every token.

    `tokens` is the number of counted tokens. `bos_id` never follows anything: an n-gram that begins with it begins a
    text, and none contains it elsewhere.
    """

    vocab_size: int
    tables: list[Table]
    tokens: int
    bos_id: int | None = None

    @property
    def order(self) -> int:
        """Tokens of the longest n-grams."""
        return len(self.tables)

    def contexts(self, order: int) -> Array:
        """The places of the contexts of the n-grams of `order` tokens, in the table before (0 for single tokens)."""
        table = self.tables[order - 1]
        return np.zeros(len(table), dtype=np.int64) if order == 1 else table.keys // self.vocab_size

    def words(self, order: int) -> Array:
        """The last tokens of the n-grams of `order` tokens."""
        return self.tables[order - 1].keys % self.vocab_size

    def starts_with_bos(self, order: int) -> Array:
        """Whether each n-gram of `order` tokens begins with `bos_id`."""
        first = self.tables[0].keys == (-1 if self.bos_id is None else self.bos_id)
        for current in range(2, order + 1):
            first = first[self.contexts(current)]
        return first

    def rows(self, order: int) -> Array:
        """The tokens of all n-grams of `order` tokens, (N, order)."""
        columns = [self.words(order)]
        place = self.contexts(order)
        for shorter in range(order - 1, 0, -1):
            columns.append(self.words(shorter)[place])
            place = self.contexts(shorter)[place]
        return np.stack(columns[::-1], axis=1)

    def pruned(self, least: Sequence[int]) -> NgramCounts:
        """The counts without n-grams that are rarer than `least[k - 1]`, nor those that contain one of them.

        Raises InputError unless the numbers do not fall with the length, so that contexts stay.
        """
        least = [*least, *[least[-1]] * (self.order - len(least))][: self.order] if least else [0] * self.order
        if list(least) != sorted(least) or (self.order > 1 and least[0] > 1):
            raise InputError(
                f"min_counts: {list(least)}; must not fall with the length of the n-grams, and begin with 0 or 1: "
                "every token stays"
            )
        tables, places = [self.tables[0]], np.arange(len(self.tables[0]))
        for order in range(2, self.order + 1):
            table = self.tables[order - 1]
            context = places[table.keys // self.vocab_size]
            kept = (table.counts >= least[order - 1]) & (context >= 0) & (places[table.suffix] >= 0)
            keys = context[kept] * self.vocab_size + table.keys[kept] % self.vocab_size
            tables.append(Table(keys, table.counts[kept], places[table.suffix[kept]]))
            places = np.where(kept, np.cumsum(kept) - 1, -1)
        return NgramCounts(self.vocab_size, tables, self.tokens, self.bos_id)


@dataclass(frozen=True)
class CountPlan:
    """What counting will take, said before it starts: a bound for any text of this size, or an estimate of this one."""

    ngrams: tuple[int, ...]
    """So many different n-grams of each length."""
    chunk: int
    memory: int
    disk: int
    is_estimate: bool = False

    def __str__(self) -> str:
        shown = ", ".join(f"{count:,}" for count in self.ngrams)
        how = "about" if self.is_estimate else "at most"
        return (
            f"{how} {shown} different n-grams by length: {how} {format_bytes(self.memory)} of memory and "
            f"{format_bytes(self.disk)} of disk while they are counted"
        )


def plan(tokens: int, vocab_size: int, order: int, chunk: int = CHUNK) -> CountPlan:
    """The bounds for a text of `tokens` tokens. There are no more n-grams than places, nor than combinations."""
    most = [vocab_size]
    for _ in range(1, order):
        most.append(min(tokens, most[-1] * vocab_size))
    return _plan_of(most, tokens, chunk)


def _plan_of(most: Sequence[int], tokens: int, chunk: int, is_estimate: bool = False) -> CountPlan:
    chunk = max(1, min(chunk, tokens))
    memory = BYTES_PER_TOKEN * chunk + BYTES_STORED * sum(most) + BYTES_PER_NGRAM * max(most)
    disk = (8 + 24) * tokens if tokens > chunk else 0
    return CountPlan(tuple(most), chunk, memory, disk, is_estimate)


def expect(ids: Array, vocab_size: int, order: int, chunk: int = CHUNK, *, bos_id: int | None = None) -> CountPlan:
    """What these ids will take: of a long text an estimate, from how the numbers of n-grams of its beginning grow.

    They grow more slowly the longer the text is (Heaps 1978), so that going on at the rate of the beginning is more
    than there will be.
    """
    bound = plan(len(ids), vocab_size, order, chunk)
    if len(ids) < 4 * SAMPLE:
        return bound
    half, whole = (
        [len(table) for table in count(np.asarray(ids[:size]), vocab_size, order, bos_id=bos_id).tables]
        for size in (SAMPLE // 2, SAMPLE)
    )
    doublings = np.log2(len(ids) / SAMPLE)
    grown = [int(last * (last / max(first, 1)) ** doublings) for first, last in zip(half, whole, strict=True)]
    most = [min(limit, each) for limit, each in zip(bound.ngrams, grown, strict=True)]
    return _plan_of(most, len(ids), chunk, is_estimate=True)


def count(
    ids: Array,
    vocab_size: int,
    order: int,
    *,
    bos_id: int | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], None] = lambda done: None,
) -> NgramCounts:
    """Counts the n-grams of ids (N,), which may be memory-mapped, up to `order` tokens.

    `progress` gets the number of tokens read, over all orders. Raises InputError for an empty text and for ids outside
    the vocabulary.
    """
    total = len(ids)
    if total < 1:
        raise InputError("The text is empty: there is nothing to count.")
    if not 1 <= order <= 100:
        raise InputError(f"order: {order}; must be from 1 to 100")
    _check_ids(ids, vocab_size, chunk)
    tables = [_unigrams(ids, vocab_size, chunk)]
    if order == 1:
        return NgramCounts(vocab_size, tables, total, bos_id)
    with tempfile.TemporaryDirectory(prefix="ngrams-") as name:
        folder, spilled = Path(name), total > chunk
        places = _array(folder / "places", total, np.int64, spilled)
        for start in range(0, total, chunk):
            places[start : start + chunk] = ids[start : start + chunk]
        for length in range(2, order + 1):
            tables.append(_longer(ids, places, tables[-1], vocab_size, bos_id, chunk, folder, length))
            progress(length * total)
    return NgramCounts(vocab_size, tables, total, bos_id)


def _check_ids(ids: Array, vocab_size: int, chunk: int) -> None:
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise InputError(f"token {wrong} is not in the vocabulary of {vocab_size:,}; text and tokenizer do not fit")


def _unigrams(ids: Array, vocab_size: int, chunk: int) -> Table:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), chunk):
        counts += np.bincount(ids[start : start + chunk].astype(np.int64), minlength=vocab_size)
    return Table(np.arange(vocab_size), counts, np.zeros(vocab_size, dtype=np.int64))


def _array(path: Path, size: int, dtype: type, on_disk: bool) -> Array:
    return np.lib.format.open_memmap(path, "w+", dtype, (size,)) if on_disk else np.empty(size, dtype=dtype)


def _longer(
    ids: Array,
    places: Array,
    before: Table,
    vocab_size: int,
    bos_id: int | None,
    chunk: int,
    folder: Path,
    length: int,
) -> Table:
    """The table of n-grams longer by one than `before`. `places` (N,), the place of the n-gram that ends at each token,
    -1 for none, becomes that of the longer ones.
    """
    if len(before) >= MOST_NGRAMS // vocab_size:
        raise InputError(f"{len(before):,} n-grams of a vocabulary of {vocab_size:,} are too many to number.")
    total = len(ids)
    runs: list[tuple[Array, Array, Array]] = []
    inverse_of = []
    previous = -1  # There is no context before the first token.
    for number, start in enumerate(range(0, total, chunk)):
        part = np.asarray(places[start : start + chunk])
        words = np.asarray(ids[start : start + chunk]).astype(np.int64)
        contexts = np.concatenate([[previous], part[:-1]])
        previous = int(part[-1])
        valid = (contexts >= 0) if bos_id is None else (contexts >= 0) & (words != bos_id)
        keys, counts, inverse = _distinct(contexts[valid] * vocab_size + words[valid], len(before) * vocab_size)
        suffix = np.empty(len(keys), dtype=np.int64)
        suffix[inverse] = part[valid]
        run = (keys, counts, suffix)
        runs.append(_spill(folder / f"run-{length}-{number}", run) if total > chunk else run)
        found = np.full(len(part), -1, dtype=np.int64)
        found[valid] = inverse
        places[start : start + chunk] = found
        inverse_of.append(start)
    keys, counts, suffix = _merged(runs, chunk)
    for start, (own, _, _) in zip(inverse_of, runs, strict=True):
        part = np.asarray(places[start : start + chunk])
        own_places = np.searchsorted(keys, own)
        places[start : start + chunk] = np.where(part >= 0, own_places[part], -1) if len(own) else part
    for path in folder.glob(f"run-{length}-*"):
        path.unlink()
    return Table(keys, counts, suffix)


def _distinct(keys: Array, most: int) -> tuple[Array, Array, Array]:
    """The sorted different keys, all below `most`, how often each occurs, and the place of each of the given keys."""
    if most <= 4 * len(keys):  # Few possible keys: counting is faster than sorting.
        counts = np.bincount(keys, minlength=most)
        present = np.flatnonzero(counts)
        places = np.cumsum(counts > 0) - 1
        return present, counts[present], places[keys]
    order = np.argsort(keys)
    ordered = keys[order]
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    first = np.flatnonzero(new)
    inverse = np.empty(len(keys), dtype=np.int64)
    inverse[order] = np.cumsum(new) - 1
    return ordered[first], np.diff(np.append(first, len(keys))), inverse


def _spill(path: Path, run: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Writes a run to a file; returns it memory-mapped."""
    stored = _array(path, 3 * len(run[0]), np.int64, bool(len(run[0])))
    size = len(run[0])
    for index, values in enumerate(run):
        stored[index * size : (index + 1) * size] = values
    return stored[:size], stored[size : 2 * size], stored[2 * size :]


def _merged(runs: Sequence[tuple[Array, Array, Array]], chunk: int) -> tuple[Array, Array, Array]:
    """One sorted table of several sorted runs; equal keys add their counts."""
    if len(runs) == 1:
        keys, counts, suffix = runs[0]
        return np.asarray(keys), np.asarray(counts), np.asarray(suffix)
    parts = [_merge_range(pieces) for pieces in _ranges(runs, chunk)]
    keys, counts, suffix = (np.concatenate([part[index] for part in parts]) for index in range(3))
    return keys, counts, suffix


def _ranges(runs: Sequence[tuple[Array, Array, Array]], chunk: int) -> Iterator[list[tuple[Array, Array, Array]]]:
    """The slices of all runs with keys of one range, so that about `chunk` n-grams are in memory."""
    total = sum(len(run[0]) for run in runs)
    pieces = max(1, -(-total // chunk))
    longest = max((run[0] for run in runs), key=len)
    borders = [int(longest[len(longest) * piece // pieces]) for piece in range(1, pieces)] if len(longest) else []
    starts = [0] * len(runs)
    for border in [*borders, None]:
        ends = [len(run[0]) if border is None else int(np.searchsorted(run[0], border)) for run in runs]
        yield [
            (run[0][start:end], run[1][start:end], run[2][start:end])
            for run, start, end in zip(runs, starts, ends, strict=True)
        ]
        starts = ends


def _merge_range(pieces: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    keys = np.concatenate([piece[0] for piece in pieces])
    counts = np.concatenate([piece[1] for piece in pieces])
    suffix = np.concatenate([piece[2] for piece in pieces])
    order = np.argsort(keys, kind="stable")
    keys, counts, suffix = keys[order], counts[order], suffix[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    return keys[first], np.add.reduceat(counts, first) if len(first) else counts, suffix[first]


def check_plan(expected: CountPlan) -> None:
    """Raises InputError if counting could take more memory than is free."""
    free = available_memory("cpu")
    if free is not None and expected.memory > free:
        raise InputError(
            f"Counting these n-grams may take {format_bytes(expected.memory)} ({expected}), and {format_bytes(free)} "
            "are free; take a smaller order, a smaller vocabulary, or less text."
        )
