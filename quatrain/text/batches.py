"""Batches: the tensors of one training step, and the ways that examples become them.

An example is a list of token ids with a mask of the tokens to learn. Labels come shifted: `labels[b, t]` is the
token to say after reading `input_ids[b, : t + 1]`, and -100 where nothing is learned.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """The tensors of one step: `input_ids` and `labels` (B, T), and for packed rows `positions` and `segments` (B,
    T).

    Segments number the examples of a row from 1; 0 is padding. Labels have the shape that the model's head wants (for
    two heads at once they are a pair). `token_types` (B, T) tell the two texts of a pair apart. What an
    encoder-decoder's decoder reads, `decoder_input_ids` (B, S) and `decoder_segments`, follows from the labels unless
    it is given. `adapters` names the one that each row goes through, of a model with several.
    """

    input_ids: Tensor
    labels: Any
    positions: Tensor | None = None
    segments: Tensor | None = None
    token_types: Tensor | None = None
    decoder_input_ids: Tensor | None = None
    decoder_segments: Tensor | None = None
    adapters: tuple[str | None, ...] | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        if isinstance(self.labels, tuple):
            moved["labels"] = tuple(label.to(device) for label in self.labels)
        return replace(self, **moved)

    @property
    def num_labels(self) -> int:
        """How many positions are learned; of two kinds of labels, the first counts."""
        labels = self.labels[0] if isinstance(self.labels, tuple) else self.labels
        return int((labels != IGNORE).sum())

    def inputs(self) -> dict[str, Any]:
        """What of this batch a model's forward takes by name, as far as it is given; ids and labels come before."""
        names = ("positions", "segments", "token_types", "decoder_input_ids", "decoder_segments", "adapters")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class TokenExample:
    """Token ids (T,) and which of them to learn (T,); the first token can never be learned, nothing precedes it."""

    ids: Sequence[int]
    mask: Sequence[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_labels(self) -> int:
        """How many of the tokens are learned."""
        return sum(self.mask[1:])


@dataclass(frozen=True)
class TaskExample(TokenExample):
    """One of several tasks that are learned together, each by an adapter of its own."""

    adapter: str | None = None


def stack(rows: Sequence[Sequence[int]], value: int, *, multiple: int = 8, limit: int | None = None) -> Tensor:
    """Rows of ids as one tensor (B, T), filled up on the right with `value`; T is the longest row's, a whole
    `multiple`.

    T is not rounded up past `limit`, which is the model's context: no row becomes longer than the model reads.
    """
    longest = max((len(row) for row in rows), default=0)
    length = max(1, -(-longest // multiple) * multiple)
    if limit is not None:
        length = max(longest, min(length, limit), 1)
    array = np.full((len(rows), length), value, dtype=np.int64)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return torch.from_numpy(array)


def text_segments(rows: Sequence[Sequence[int]], length: int) -> Tensor | None:
    """1 for each row's own tokens and 0 for its padding to `length`, (B, T); None where no row is padded."""
    lengths = torch.tensor([len(row) for row in rows])
    return None if bool((lengths == length).all()) else (torch.arange(length) < lengths[:, None]).long()


def shift(example: TokenExample) -> tuple[list[int], list[int]]:
    """Inputs and labels, one token shorter than the example: `shift` of ids `abc` with mask `011` is `ab`, `bc`."""
    labels = [token if learn else IGNORE for token, learn in zip(example.ids[1:], example.mask[1:], strict=True)]
    return list(example.ids[:-1]), labels


def pad(examples: Sequence[TokenExample], pad_id: int, *, multiple: int = 8) -> Batch:
    """One example a row, padded on the right to the longest, rounded up to `multiple`.

    With causal attention no token sees the padding to its right, so no mask is needed; its labels are -100.
    """
    rows = [shift(example) for example in examples]
    length = max(len(inputs) for inputs, _ in rows)
    length = -(-length // multiple) * multiple
    input_ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORE, dtype=np.int64)
    for number, (inputs, targets) in enumerate(rows):
        input_ids[number, : len(inputs)] = inputs
        labels[number, : len(targets)] = targets
    adapters = tuple(each.adapter for each in examples if isinstance(each, TaskExample))
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), adapters=adapters or None)


def pack(examples: Sequence[TokenExample], length: int, pad_id: int) -> Batch:
    """Several examples a row of `length` tokens, each a segment with positions of its own.

    Raises ValueError for an example longer than a row; callers truncate first, and say so.
    """
    rows = fill_rows([len(example) - 1 for example in examples], length)
    return pack_rows([[examples[number] for number in row] for row in rows], length, pad_id)


def fill_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The numbers of the items that share each row of `room`: the longest first, each where it leaves least room.

    Best-fit decreasing, which needs at most 11/9 of the fewest rows that there could be (Johnson 1973). Raises
    ValueError for an item longer than a row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room that is left, row), sorted
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        size = lengths[number]
        if size > room:
            raise ValueError(f"an example of {size + 1} tokens does not fit a row of {room}")
        place = bisect.bisect_left(free, (size, -1))
        if place == len(free):
            rows.append([])
            left, row = room, len(rows) - 1
        else:
            left, row = free.pop(place)
        rows[row].append(number)
        bisect.insort(free, (left - size, row))
    return rows


def pack_rows(rows: Sequence[Sequence[TokenExample]], length: int, pad_id: int) -> Batch:
    """Rows of `length` tokens of the examples given for each, with segments and positions of their own."""
    shape = (len(rows), length)
    input_ids, targets = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    positions, segments = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples, 1):
            inputs, labels = shift(example)
            end = start + len(inputs)
            input_ids[row, start:end], targets[row, start:end] = inputs, labels
            positions[row, start:end], segments[row, start:end] = np.arange(end - start), number
            start = end
    read, learned, places, parts = map(torch.from_numpy, (input_ids, targets, positions, segments))
    return Batch(read, learned, places, parts)


def windows(tokens: np.ndarray, starts: Sequence[int] | np.ndarray, length: int) -> Batch:
    """Plain windows of a long text: row b reads `tokens[starts[b] : starts[b] + length]`, each token learned.

    `tokens` is any array of ids, memory-mapped ones included; each window needs `length + 1` tokens.
    """
    index = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(length + 1)
    taken = torch.from_numpy(np.asarray(tokens[index.ravel()], dtype=np.int64).reshape(index.shape))
    return Batch(taken[:, :-1].contiguous(), taken[:, 1:].contiguous())
