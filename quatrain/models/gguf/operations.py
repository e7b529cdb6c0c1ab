"""Reversible weight operations that only GGUF files need, beside those of `quatrain.models.families.weights`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quatrain.models.families.weights import Rename, Split
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


@dataclass(frozen=True)
class Latent(Split):
    """DeepSeek's `kv_b_proj`, from a token's small vector to keys and values, as two tensors of a matrix per head.

    llama.cpp multiplies the queries with the first, so that it is (heads, rank, nope); the second is (heads, value,
    rank).
    """

    values: str = ""

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs, self.values]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our matrix (heads * (nope + value), rank)."""
        keys, values = get(self.theirs), get(self.values)
        yield self.ours[0], torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors."""
        matrix = get(self.ours[0])
        keys, values = matrix.view(self.heads, -1, matrix.shape[-1]).split(self.sizes, dim=1)
        yield self.theirs, keys.transpose(1, 2).contiguous()
        yield self.values, values.contiguous()

    def at(self, layer: str, number: int) -> Latent:
        """This operation for one layer: `layer` (`{n}` or `{e}`) replaced with its number."""
        split = super().at(layer, number)
        return replace(self, theirs=split.theirs, ours=split.ours, values=self.values.replace(layer, str(number)))

    def sized(self, config: ModelConfig) -> Latent:
        """This operation with the sizes of a configuration."""
        latent = config.latent
        sizes = () if latent is None else (latent.nope_dim, latent.value_dim)
        return replace(self, heads=config.num_attention_heads, sizes=sizes)


@dataclass(frozen=True)
class Recurrent(Rename):
    """A tensor of a recurrent layer.

    `decay`: theirs is -exp(ours). `shape`: theirs has this shape. `tiled`: llama.cpp has the heads of the values in
    another order, the first of every group before the second ones; they are the last `rows` (one for each head), the
    last `channels` (rows, one for each channel of a head) or the `columns`.
    """

    decay: bool = False
    shape: Callable[[ModelConfig], tuple[int, ...]] | None = None
    tiled: str = ""
    config: ModelConfig | None = None

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensor."""
        tensor = get(self.theirs)
        if self.decay:
            tensor = tensor.neg().log()
        if self.shape is not None:
            tensor = self._ours(tensor)
        yield self.ours, self._ordered(tensor, back=True) if self.tiled else tensor

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensor."""
        tensor = get(self.ours)
        if self.tiled:
            tensor = self._ordered(tensor, back=False)
        if self.decay:
            tensor = tensor.to(torch.float32).exp().neg()
        if self.shape is not None and self.config is not None:
            tensor = tensor.reshape(self.shape(self.config))
        yield self.theirs, tensor

    def _ours(self, tensor: Tensor) -> Tensor:
        return tensor[:, None] if self.ours.endswith("conv.weight") else tensor.flatten()

    def _ordered(self, tensor: Tensor, *, back: bool) -> Tensor:
        """The same with the heads of values in the other order."""
        if self.config is None:
            return tensor
        heads, groups = self.config.recurrent_heads, self.config.recurrent_groups
        axis, width = int(self.tiled == "columns"), 1 if self.tiled == "rows" else self.config.recurrent_head_dim
        kept, moved = tensor.split((tensor.shape[axis] - heads * width, heads * width), dim=axis)
        counts = (heads // groups, groups) if back else (groups, heads // groups)
        moved = moved.unflatten(axis, (*counts, width)).transpose(axis, axis + 1).flatten(axis, axis + 2)
        return torch.cat([kept, moved], dim=axis)

    def sized(self, config: ModelConfig) -> Recurrent:
        """This operation with a configuration, whose sizes it needs."""
        return replace(self, config=config)
