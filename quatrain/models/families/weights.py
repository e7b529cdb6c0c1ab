"""Reversible operations between a family's weight names and ours: rename, transpose, split.

Names may hold `{n}`, which stands for every layer, or `{e}`, which stands for every layer of an encoder-decoder's
encoder. An operation reads (theirs to ours) and writes (ours to theirs), so that one list maps a checkpoint both
ways, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig


@dataclass(frozen=True)
class Rename:
    """One tensor of theirs is one of ours, transposed when the family stores (in, out)."""

    theirs: str
    ours: str
    transpose: bool = False

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return [self.ours]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that gives theirs by name; views of them where that can be."""
        tensor = get(self.theirs)
        yield self.ours, tensor.t() if self.transpose else tensor

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        tensor = get(self.ours)
        yield self.theirs, tensor.t().contiguous() if self.transpose else tensor

    def at(self, layer: str, number: int) -> Rename:
        """This operation for one layer."""
        return replace(self, theirs=self.theirs.replace(layer, str(number)), ours=self.ours.replace(layer, str(number)))

    def sized(self, config: ModelConfig) -> Rename:
        """This operation for one configuration."""
        return self

    def prefixed(self, prefix: str) -> Rename:
        """This operation with a prefix before their names."""
        return replace(self, theirs=prefix + self.theirs)


@dataclass(frozen=True)
class Split:
    """One fused tensor of theirs is several of ours, side by side along the output axis.

    parts: `equal`; `grouped`, as queries, keys and values are where keys have fewer heads; `interleaved`, the
    queries, keys and values of one head after those of another.
    """

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False
    parts: str = "equal"
    sizes: tuple[int, ...] = ()
    heads: int = 0

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return list(self.ours)

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that gives theirs by name; views of them where that can be."""
        fused = get(self.theirs)
        fused = fused.t() if self.transpose else fused
        yield from zip(self.ours, self._cut(fused), strict=True)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        parts = [get(name) for name in self.ours]
        if self.parts == "interleaved":
            rest = parts[0].shape[1:]
            fused = torch.stack([part.view(self.heads, -1, *rest) for part in parts], dim=1).flatten(0, 2)
        else:
            fused = torch.cat(parts, dim=0)
        yield self.theirs, fused.t().contiguous() if self.transpose else fused

    def _cut(self, fused: Tensor) -> Sequence[Tensor]:
        if self.parts == "interleaved":
            by_head = fused.reshape(self.heads, len(self.ours), -1, *fused.shape[1:])
            return [part.flatten(0, 1) for part in by_head.unbind(1)]
        if self.parts == "grouped" and sum(self.sizes) == fused.shape[0]:
            return fused.split(self.sizes, dim=0)
        return fused.chunk(len(self.ours), dim=0)

    def at(self, layer: str, number: int) -> Split:
        """This operation for one layer."""
        ours = tuple(name.replace(layer, str(number)) for name in self.ours)
        return replace(self, theirs=self.theirs.replace(layer, str(number)), ours=ours)

    def sized(self, config: ModelConfig) -> Split:
        """This operation for one configuration."""
        query, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        sizes = (query, kv, kv) if self.parts == "grouped" else ()
        return replace(self, sizes=sizes, heads=config.num_attention_heads)

    def prefixed(self, prefix: str) -> Split:
        """This operation with a prefix before their names."""
        return replace(self, theirs=prefix + self.theirs)


@dataclass(frozen=True)
class Computed:
    """A tensor that files may hold and the model computes: checked when read, written where transformers wants it."""

    theirs: str
    value: Callable[[ModelConfig], Tensor]
    written: bool = False
    config: ModelConfig | None = None

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names: none."""
        return []

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Nothing: no tensor of ours comes of it."""
        return iter(())

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensor, where it is written."""
        if self.written and self.config is not None:
            yield self.theirs, self.value(self.config)

    def agrees(self, tensor: Tensor) -> bool:
        """Whether a file's tensor is the computed one, within the precision of its dtype."""
        if self.config is None:
            return False
        ours = self.value(self.config)
        close = 1e-5 if tensor.dtype in (torch.float32, torch.float64) else 1e-2
        return tensor.shape == ours.shape and torch.allclose(tensor.float(), ours, rtol=0.0, atol=close)

    def at(self, layer: str, number: int) -> Computed:
        """This operation for one layer."""
        return replace(self, theirs=self.theirs.replace(layer, str(number)))

    def sized(self, config: ModelConfig) -> Computed:
        """This operation for one configuration."""
        return replace(self, config=config)

    def prefixed(self, prefix: str) -> Computed:
        """This operation with a prefix before their names."""
        return replace(self, theirs=prefix + self.theirs)


Operation = Rename | Split | Computed


def expand(operations: Sequence[Operation], config: ModelConfig) -> list[Operation]:
    """The operations for one configuration, with `{n}` and `{e}` written out for every layer."""
    layers = {"{n}": config.num_hidden_layers, "{e}": config.num_encoder_layers}
    expanded: list[Operation] = []
    for operation in operations:
        operation = operation.sized(config)
        layer = next((mark for mark in layers if mark in operation.theirs), None)
        if layer is None:
            expanded.append(operation)
        else:
            expanded.extend(operation.at(layer, number) for number in range(layers[layer]))
    return expanded


def renames(
    theirs: str, ours: str, leaves: Sequence[str] = ("weight", "bias"), transpose: bool = False
) -> list[Operation]:
    """A module's tensors under another name; a `transpose` is that of the weight."""
    return [Rename(f"{theirs}.{leaf}", f"{ours}.{leaf}", transpose and leaf == "weight") for leaf in leaves]
