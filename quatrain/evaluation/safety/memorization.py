"""Memorized training text: how much of it does a model write word for word, or nearly?

A text is extractable if the model continues its beginning with what follows in training (Carlini et al. 2022, arXiv
2202.07646). The longest run that a continuation shares with any training text also finds text from elsewhere; near
copies are found by edit distance (Ippolito et al. 2022, arXiv 2210.17546).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quatrain.core.errors import InputError

NEAR = 0.9
"""Continuations whose edit similarity with the training text is at least this are near copies."""
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
"""An odd base of the rolling hash; equal hashes are compared token by token."""


@dataclass(frozen=True)
class Memorized:
    """What a continuation has of the training text.

    exact: it equals what follows in training. prefix: how many of its first tokens do. run: the longest run that it
    shares with any training text, and `run_end` where that ends in the continuation. similarity: 1 less the edit
    distance to what follows, over the longer length; `near` if at least 0.9.
    """

    exact: bool
    prefix: int
    run: int
    run_end: int
    similarity: float

    @property
    def near(self) -> bool:
        return self.similarity >= NEAR


def memorized(continuation: Sequence[int], truth: Sequence[int], training: Sequence[int] | np.ndarray) -> Memorized:
    """Compares a continuation with what follows in training (`truth`), and with all of the training text.

    All are token ids, or characters as numbers. Raises InputError for an empty truth.
    """
    if not len(truth):
        raise InputError("There is no text after the beginning; give a longer text or a shorter beginning.")
    same = [a == b for a, b in zip(continuation, truth, strict=False)]
    prefix = next((at for at, equal in enumerate(same) if not equal), len(same))
    run, end = longest_common_run(continuation, training)
    exact = prefix == len(truth)
    longest = max(len(continuation[: len(truth)]), len(truth))
    distance = edit_distance(continuation[: len(truth)], truth)
    return Memorized(exact, prefix, run, end, 1 - distance / longest)


def longest_common_run(text: Sequence[int], other: Sequence[int] | np.ndarray) -> tuple[int, int]:
    """The length of the longest run of ids that both have, and where it ends in `text`; (0, 0) for none.

    Bisection over the length with a rolling hash: O((N + M) log min(N, M)) time, O(N + M) memory.
    """
    one, two = np.asarray(text, dtype=np.uint64), np.asarray(other, dtype=np.uint64)
    low, high, end = 0, min(len(one), len(two)), 0
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(max(len(one), len(two)), _BASE)]), dtype=np.uint64)
        sums = [_prefix_sums(each, powers) for each in (one, two)]
        while low < high:
            length = (low + high + 1) // 2
            found = _common(one, two, sums, powers, length)
            if found is None:
                high = length - 1
            else:
                low, end = length, found + length
    return low, end


def _prefix_sums(ids: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Sums of (id + 1) * base^place, modulo 2^64."""
    sums: np.ndarray = np.concatenate([[np.uint64(0)], np.cumsum((ids + np.uint64(1)) * powers[: len(ids)])])
    return sums.astype(np.uint64)


def _common(one: np.ndarray, two: np.ndarray, sums: list[np.ndarray], powers: np.ndarray, length: int) -> int | None:
    """Where a run of this length of `one` that `two` has begins."""
    most = max(len(one), len(two))
    hashes = []
    for ids, own in zip((one, two), sums, strict=True):
        count = len(ids) - length + 1
        # All runs are moved to the same power, so that equal runs have equal hashes.
        hashes.append((own[length:] - own[:count]) * powers[most - length - np.arange(count)])
    both = np.isin(hashes[0], hashes[1])
    order = np.argsort(hashes[1], kind="stable")
    for start in np.flatnonzero(both):
        at = int(np.searchsorted(hashes[1], hashes[0][start], sorter=order))
        place = int(order[at])
        if np.array_equal(one[start : start + length], two[place : place + length]):
            return int(start)
    return None


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    two = np.asarray(other)
    row = np.arange(len(two) + 1)
    steps = np.arange(len(two) + 1)
    for number, token in enumerate(one, 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (two != token))
        candidates = np.concatenate([[number], changed])
        # An insertion costs 1 for each place further: a running minimum of cost - place.
        row = np.minimum.accumulate(candidates - steps) + steps
    return int(row[-1])
