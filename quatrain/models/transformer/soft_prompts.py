"""What a model reads before every text and is not in it: learned embeddings, or learned keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.context import Prefix


@dataclass
class StackInput:
    """What a stack reads of a batch: embedded tokens (B, N, C) with slots among them, and what is said of each.

    `prefix` are keys and values of slots, where they do not follow from the embeddings.
    """

    embedded: Tensor
    positions: Tensor | None = None
    segments: Tensor | None = None
    token_types: Tensor | None = None
    prefix: Prefix | None = None


class SoftPrompt(nn.Module):
    """`length` slots before a row's first token. A subclass says what stands in them.

    To everything else they are tokens of the row's segment: they take positions, are seen by all of it, and are kept in
    a cache; no hidden state of theirs comes out. An encoder-decoder's encoder reads them, and its decoder sees them.
    """

    method: ClassVar[str]
    length: int

    def table(self) -> Tensor:
        """What a file holds: one row a slot."""
        raise NotImplementedError

    def embeddings(self) -> Tensor | None:
        """Embeddings of the slots (length, embedding_size) or (B, …); None if only `keys_values` are used."""
        raise NotImplementedError

    def keys_values(self) -> Prefix | None:
        """Keys and values of the slots in each layer; None where they follow from the embeddings."""
        return None

    def lengths(self) -> Tensor | None:
        """How many of the slots, the last ones, each row has (B,); None where all have all."""
        return None

    def prepend_to(self, read: StackInput, *, first: bool) -> StackInput:
        """What the stack reads: the slots in front of each row's first token, or later tokens that follow them.

        Raises InputError for rows of several segments: each would want slots of its own.
        """
        rows, length, lengths = read.embedded.shape[0], self.length, self.lengths()
        shift = length if lengths is None else lengths[:, None]
        positions, segments, types = read.positions, read.segments, read.token_types
        if not first or not length:
            return StackInput(read.embedded, None if positions is None else positions + shift, segments, types)
        if segments is None and lengths is not None:
            segments = torch.ones(read.embedded.shape[:2], dtype=torch.long, device=read.embedded.device)
        own, prefix = self.embeddings(), self.keys_values()
        slots = read.embedded.new_zeros(length, read.embedded.shape[2]) if own is None else own.to(read.embedded.dtype)
        embedded = torch.cat((slots.expand(rows, -1, -1), read.embedded), dim=1)
        numbers = torch.arange(length, device=embedded.device)
        if positions is not None:
            places = numbers if lengths is None else (numbers - (length - lengths[:, None])).clamp(min=0)
            start = positions.amin(1, keepdim=True).expand(rows, 1)
            positions = torch.cat((start + places, (positions + shift).expand(rows, -1)), dim=1)
        if types is not None:
            types = torch.cat((types.new_zeros(rows, length), types), dim=1)
        if segments is None:
            return StackInput(embedded, positions, None, types, prefix)
        one = segments.amax(1, keepdim=True)
        if bool(((segments != 0) & (segments != one)).any()):
            raise InputError("A soft prompt stands before one text a row; packed rows hold several: train.packing.")
        padding = (segments.cumsum(1) == 0).sum(1, keepdim=True)
        taken = one.expand(-1, length) if lengths is None else one * (numbers >= length - lengths[:, None])
        segments = torch.cat((taken, segments), dim=1)
        found = StackInput(embedded, positions, segments, types, prefix)
        return _behind(found, padding, length) if bool(padding.any()) else found


def _behind(read: StackInput, padding: Tensor, length: int) -> StackInput:
    """The same with each row's slots behind its padding (B, 1), next to its first token, as distances want it."""
    numbers = torch.arange(read.embedded.shape[1], device=padding.device)[None]
    order = torch.where(numbers < padding, numbers + length, numbers)
    order = torch.where((numbers >= padding) & (numbers < padding + length), numbers - padding, order)
    embedded = read.embedded.gather(1, order[..., None].expand_as(read.embedded))
    said = (read.positions, read.segments, read.token_types)
    positions, segments, types = (None if each is None else each.gather(1, order) for each in said)
    prefix = read.prefix
    if prefix is not None:
        prefix = Prefix(prefix.layers, padding + numbers[:, :length], prefix.holds)
    return StackInput(embedded, positions, segments, types, prefix)
