"""Soft prompts: learned embeddings, or learned keys and values, in slots before every text.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) and prefix tuning (Li & Liang 2021, arXiv 2101.00190); the methods
are in `quatrain.adapters.prompts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.context import Prefix


@dataclass
class StackInput:
    """The input of a stack: embedded tokens (B, N, C), and positions, segments and token types (B, N).

    `prefix` holds the keys and values of soft-prompt slots, unless these follow from the embeddings.
    """

    embedded: Tensor
    positions: Tensor | None = None
    segments: Tensor | None = None
    token_types: Tensor | None = None
    prefix: Prefix | None = None


class SoftPrompt(nn.Module):
    """`length` slots before the first token of each row; a subclass gives their content.

    The slots behave like tokens of the row's segment: they take positions, all tokens of the segment attend to them,
    and the KV cache stores them. The model returns no hidden states for them. In an encoder-decoder they precede the
    encoder's input.
    """

    method: ClassVar[str]
    length: int

    def embeddings(self) -> Tensor | None:
        """Embeddings of the slots (length, embedding_size) or (B, …); None if only `keys_values` are used."""
        raise NotImplementedError

    def keys_values(self) -> Prefix | None:
        """Keys and values of the slots in each layer; None if they follow from the embeddings."""
        return None

    def lengths(self) -> Tensor | None:
        """The number of slots that each row uses, the last ones (B,); None if every row uses all."""
        return None

    def prepend_to(self, inputs: StackInput, *, first: bool) -> StackInput:
        """The input with the slots inserted before each row's first token.

        If not `first`, the cache holds the slots already, and only positions are shifted. Raises InputError for rows
        with several segments: each would need its own slots.
        """
        rows, length, lengths = inputs.embedded.shape[0], self.length, self.lengths()
        shift = length if lengths is None else lengths[:, None]
        positions, segments, types = inputs.positions, inputs.segments, inputs.token_types
        if not first or not length:
            return StackInput(inputs.embedded, None if positions is None else positions + shift, segments, types)
        if segments is None and lengths is not None:
            segments = torch.ones(inputs.embedded.shape[:2], dtype=torch.long, device=inputs.embedded.device)
        slots, prefix = self.embeddings(), self.keys_values()
        if slots is None:
            slots = inputs.embedded.new_zeros(length, inputs.embedded.shape[2])
        slots = slots.to(inputs.embedded.dtype)
        embedded = torch.cat((slots.expand(rows, -1, -1), inputs.embedded), dim=1)
        slot_numbers = torch.arange(length, device=embedded.device)
        if positions is not None:
            offsets = slot_numbers if lengths is None else (slot_numbers - (length - lengths[:, None])).clamp(min=0)
            start = positions.amin(1, keepdim=True).expand(rows, 1)
            positions = torch.cat((start + offsets, (positions + shift).expand(rows, -1)), dim=1)
        if types is not None:
            types = torch.cat((types.new_zeros(rows, length), types), dim=1)
        if segments is None:
            return StackInput(embedded, positions, None, types, prefix)
        segment = segments.amax(1, keepdim=True)
        if bool(((segments != 0) & (segments != segment)).any()):
            raise InputError(
                "A soft prompt precedes one text per row; packed rows hold several: set train.packing = false."
            )
        padding = (segments.cumsum(1) == 0).sum(1, keepdim=True)
        used = segment.expand(-1, length) if lengths is None else segment * (slot_numbers >= length - lengths[:, None])
        segments = torch.cat((used, segments), dim=1)
        result = StackInput(embedded, positions, segments, types, prefix)
        return _after_padding(result, padding, length) if bool(padding.any()) else result


def _after_padding(inputs: StackInput, padding: Tensor, length: int) -> StackInput:
    """Moves the slots of left-padded rows next to their first token; `padding` (B, 1) counts the padding tokens.

    Relative positions and sliding windows measure distances between slots, so no padding may lie between.
    """
    index = torch.arange(inputs.embedded.shape[1], device=padding.device)[None]
    order = torch.where(index < padding, index + length, index)
    order = torch.where((index >= padding) & (index < padding + length), index - padding, order)
    embedded = inputs.embedded.gather(1, order[..., None].expand_as(inputs.embedded))
    fields = (inputs.positions, inputs.segments, inputs.token_types)
    positions, segments, types = (None if each is None else each.gather(1, order) for each in fields)
    prefix = inputs.prefix
    if prefix is not None:
        prefix = Prefix(prefix.layers, padding + index[:, :length], prefix.active)
    return StackInput(embedded, positions, segments, types, prefix)
