"""Batches: the tensors of one training step, and how examples are collated into them.

An example is a list of token ids with a mask of the tokens that are labels. Labels are shifted: `labels[b, t]` is the
token that follows `input_ids[b, : t + 1]`, or -100 where there is no loss.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch: named inputs, labels, and how much work it is.

    `inputs` holds what the model's forward takes, by the names of its arguments; other values are passed as
    they are. `labels` is a tensor, a tuple of tensors, or None. `unit` is what `size` counts, in the plural: speed is
    reported in it. A subclass adds tensors as attributes.
    """

    inputs: Mapping[str, Any]
    labels: Any = None
    unit: ClassVar[str] = "examples"

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            object.__setattr__(moved, name, _moved(value, device))
        return moved

    def replace(self, *, labels: Any = None, **inputs: Any) -> Self:
        """A copy with other labels, unless None, and with inputs replaced or added."""
        changed = copy.copy(self)
        object.__setattr__(changed, "inputs", {**self.inputs, **inputs})
        if labels is not None:
            object.__setattr__(changed, "labels", labels)
        return changed

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors with their names; the elements of a tuple are called `labels.0`, `labels.1`, …"""
        for name, value in {**self.inputs, **{k: v for k, v in vars(self).items() if k != "inputs"}}.items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, tuple | list):
                yield from ((f"{name}.{number}", part) for number, part in enumerate(value) if isinstance(part, Tensor))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input, such as (rows, tokens) of texts."""
        return tuple(next(value for value in self.inputs.values() if isinstance(value, Tensor)).shape)

    @property
    def size(self) -> int:
        """The size of the batch, counted in `unit`."""
        return self.shape[0]

    @property
    def num_labels(self) -> int:
        """The number of labels that are not -100, of the first labels if there are several."""
        labels = self.labels[0] if isinstance(self.labels, tuple) else self.labels
        return int((labels != IGNORE_INDEX).sum())


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(each, device) for name, each in value.items()}
    return tuple(_moved(each, device) for each in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class TokenBatch(Batch):
    """Texts: `input_ids` and `labels` (B, T), and for packed rows `positions` and `segments` (B, T).

    Segments number the examples of a row from 1; 0 is padding. Labels have the shape that the model's head takes (for
    two heads, they are a pair). `token_types` (B, T) tell the two texts of a pair apart. What an
    encoder-decoder's decoder reads, `decoder_input_ids` (B, S) and `decoder_segments`, follows from the labels unless
    it is given. `adapters` names the one that each row goes through, of a model with several.
    """

    unit: ClassVar[str] = "tokens"

    @classmethod
    def of(cls, input_ids: Tensor, labels: Any, **more: Any) -> Self:
        """A batch of these ids and labels; `more` are further inputs, and fields of a subclass. None leaves one out."""
        subclass_fields = {name for name in cls.__dataclass_fields__ if name not in Batch.__dataclass_fields__}
        inputs = {name: value for name, value in more.items() if name not in subclass_fields and value is not None}
        return cls(
            {"input_ids": input_ids, **inputs}, labels, **{name: more[name] for name in subclass_fields if name in more}
        )

    @property
    def input_ids(self) -> Tensor:
        """The token ids (B, T); for multiple choice (B, C, T)."""
        return self.inputs["input_ids"]

    @property
    def positions(self) -> Tensor | None:
        """The position of each token in its own example, (B, T); None if rows are not packed."""
        return self.inputs.get("positions")

    @property
    def segments(self) -> Tensor | None:
        """The index of each token's example in its row, from 1; 0 is padding, (B, T); None if a row is one example."""
        return self.inputs.get("segments")

    @property
    def token_types(self) -> Tensor | None:
        """0 for the first text of a pair and 1 for the second, (B, T); None for single texts."""
        return self.inputs.get("token_types")

    @property
    def size(self) -> int:
        """The number of input tokens, padding included."""
        return self.input_ids.numel()


@dataclass(frozen=True)
class TokenExample:
    """Token ids (T,) and the mask of those that are labels (T,); the first token has no prefix and is never a label."""

    ids: Sequence[int]
    mask: Sequence[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_labels(self) -> int:
        """The number of tokens that are labels."""
        return sum(self.mask[1:])


@dataclass(frozen=True)
class AdapterExample(TokenExample):
    """An example that is read through the adapter of this name; None for the base model alone."""

    adapter: str | None = None


def stack(rows: Sequence[Sequence[int]], value: int, *, multiple: int = 8, limit: int | None = None) -> Tensor:
    """Rows of ids as one tensor (B, T), padded on the right with `value` to the longest row, rounded up to `multiple`.

    T is not rounded up past `limit`, the model's context length.
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
    """1 for each row's tokens and 0 for its padding to `length`, (B, T); None if no row is padded."""
    lengths = torch.tensor([len(row) for row in rows])
    return None if bool((lengths == length).all()) else (torch.arange(length) < lengths[:, None]).long()


def shift(example: TokenExample) -> tuple[list[int], list[int]]:
    """Inputs and labels, one token shorter than the example: ids `abc` with mask `011` give `ab` and `bc`."""
    labels = [token if learn else IGNORE_INDEX for token, learn in zip(example.ids[1:], example.mask[1:], strict=True)]
    return list(example.ids[:-1]), labels


def pad(examples: Sequence[TokenExample], pad_id: int, *, multiple: int = 8) -> TokenBatch:
    """One example per row, padded on the right to the longest, rounded up to `multiple`.

    With causal attention no token attends to the padding on its right, so no mask is needed; its labels are -100.
    """
    rows = [shift(example) for example in examples]
    input_ids = stack([inputs for inputs, _ in rows], pad_id, multiple=multiple)
    labels = stack([targets for _, targets in rows], IGNORE_INDEX, multiple=multiple)
    adapters = tuple(example.adapter for example in examples if isinstance(example, AdapterExample))
    return TokenBatch.of(input_ids, labels, adapters=adapters or None)


def pack(examples: Sequence[TokenExample], length: int, pad_id: int) -> TokenBatch:
    """Several examples per row of `length` tokens, each with its own segment number and positions.

    Raises ValueError for an example longer than a row; callers truncate first.
    """
    rows = fill_rows([len(example) - 1 for example in examples], length)
    return pack_rows([[examples[number] for number in row] for row in rows], length, pad_id)


def fill_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Bin packing by best-fit decreasing: the indices of the items in each row of size `room`.

    Needs at most 11/9 of the minimal number of rows (Johnson 1973). Raises ValueError for an item longer than a row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (remaining room, row), sorted
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


def pack_rows(rows: Sequence[Sequence[TokenExample]], length: int, pad_id: int) -> TokenBatch:
    """A batch with the given examples in each row of `length` tokens, with segment numbers and positions."""
    shape = (len(rows), length)
    input_ids, targets = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORE_INDEX, dtype=np.int64)
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
    return TokenBatch.of(read, learned, positions=places, segments=parts)


def windows(tokens: np.ndarray, starts: Sequence[int] | np.ndarray, length: int) -> TokenBatch:
    """Windows of a long text: row b is `tokens[starts[b] : starts[b] + length]`; every token is a label.

    `tokens` is any array of ids, memory-mapped ones included; each window needs `length + 1` tokens.
    """
    index = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(length + 1)
    rows = torch.from_numpy(np.asarray(tokens[index.ravel()], dtype=np.int64).reshape(index.shape))
    return TokenBatch.of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
