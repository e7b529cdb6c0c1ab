"""Reversible weight operations that only GGUF files need, beside those of `quatrain.models.families.weights`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quatrain.models.families.weights import Rename
from quatrain.models.transformer.config import ModelConfig


@dataclass(frozen=True)
class Interleaved(Rename):
    """The rows of a query or key projection (or its bias) in the order of llama.cpp's architecture `llama`.

    Its rotary embedding turns neighbouring channels (0, 1), (2, 3), …; ours turns channel i with i + head_dim / 2.
    """

    is_query: bool = True
    heads: int = 0

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensor: the halves of each head one after the other."""
        tensor = get(self.theirs)
        parts = tensor.reshape(self.heads, -1, 2, *tensor.shape[1:])
        yield self.ours, parts.transpose(1, 2).reshape(tensor.shape)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensor: the halves of each head interleaved."""
        tensor = get(self.ours)
        parts = tensor.reshape(self.heads, 2, -1, *tensor.shape[1:])
        yield self.theirs, parts.transpose(1, 2).reshape(tensor.shape)

    def sized(self, config: ModelConfig) -> Interleaved:
        """This operation with the number of heads of a configuration."""
        return replace(self, heads=config.num_attention_heads if self.is_query else config.num_key_value_heads)


@dataclass(frozen=True)
class PlusOne(Rename):
    """The weight of a norm that multiplies by 1 + weight here (Gemma) and by the stored weight in llama.cpp."""

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensor, which is smaller by 1."""
        yield self.ours, get(self.theirs) - 1

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensor, which is larger by 1, in float32: half precision would round the sum again."""
        yield self.theirs, get(self.ours).to(torch.float32) + 1


@dataclass(frozen=True)
class SkippedRows(Rename):
    """A table of positions whose first rows no token uses (RoBERTa): llama.cpp's table begins with the row after."""

    rows: int = 0

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The rows that tokens use."""
        yield self.theirs, get(self.ours)[self.rows :]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The table with rows of zeros in front."""
        table = get(self.theirs)
        yield self.ours, torch.cat([table.new_zeros(self.rows, table.shape[1]), table])

    def sized(self, config: ModelConfig) -> SkippedRows:
        """This operation with the number of unused rows of a configuration."""
        return replace(self, rows=config.position_offset)
