"""What a model reads before every text and is not in it: learned embeddings, or learned keys and values."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from quatrain.errors import InputError
from quatrain.models.sight import Prefix


class SoftPrompt(nn.Module):
    """`length` slots before a row's first token. A subclass says what stands in them.

    To everything else they are tokens of the row's segment: they take positions, are seen by all of it, and are kept in
    a cache; no hidden state of theirs comes out.
    """

    method: ClassVar[str]
    length: int

    def plain(self) -> Tensor:
        """What a file holds: one row a slot."""
        raise NotImplementedError

    def embeddings(self) -> Tensor | None:
        """What the slots hold (length, embedding_size); None where only their keys and values matter."""
        raise NotImplementedError

    def keys_values(self) -> Prefix | None:
        """Keys and values of the slots in each layer; None where they follow from the embeddings."""
        return None

    def before(
        self,
        embedded: Tensor,
        positions: Tensor | None,
        segments: Tensor | None,
        token_types: Tensor | None,
        *,
        first: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Prefix | None]:
        """What the stack reads: the slots and embedded tokens (B, length + T, …), or later tokens that follow them.

        Raises InputError for rows of several segments: each would want slots of its own.
        """
        rows, count = embedded.shape[0], self.length
        if not first:
            return embedded, None if positions is None else positions + count, segments, token_types, None
        own = self.embeddings()
        slots = embedded.new_zeros(count, embedded.shape[2]) if own is None else own.to(embedded.dtype)
        embedded = torch.cat((slots.expand(rows, -1, -1), embedded), dim=1)
        if positions is not None:
            start = positions.amin(1, keepdim=True).expand(rows, 1)
            numbers = torch.arange(count, device=positions.device)
            positions = torch.cat((start + numbers, (positions + count).expand(rows, -1)), dim=1)
        if segments is not None:
            one = segments.amax(1, keepdim=True)
            if bool(((segments != 0) & (segments != one)).any()):
                raise InputError("A soft prompt stands before one text a row; packed rows hold several: train.packing.")
            segments = torch.cat((one.expand(-1, count), segments), dim=1)
        if token_types is not None:
            token_types = torch.cat((token_types.new_zeros(rows, count), token_types), dim=1)
        return embedded, positions, segments, token_types, self.keys_values()
