"""Reversible operations that map the weights of a family's files (`theirs`) to those of the stack (`ours`).

Names may contain `{n}` for each layer, `{e}` for each layer of an encoder-decoder's encoder, and `{x}` for each expert
of a mixture. Every operation can
read (theirs to ours) and write (ours to theirs), so that one list maps a checkpoint in both directions, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig


@dataclass(frozen=True)
class Rename:
    """One tensor under two names; `transpose` if the family stores it as (in, out).

    `leading` is the number of further axes of size 1 with which the family's tensor begins. `copies` are further names
    of theirs, of tensors that the network does not use: they are written with the same values and never read. `when`
    chooses the configurations that have the tensor under this name.
    """

    theirs: str
    ours: str
    transpose: bool = False
    leading: int = 0
    copies: tuple[str, ...] = ()
    when: Callable[[ModelConfig], bool] | None = None

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return [self.ours]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that returns theirs by name; views if possible."""
        tensor = get(self.theirs)
        if tuple(tensor.shape[: self.leading]) == (1,) * self.leading:
            tensor = tensor.reshape(tensor.shape[self.leading :])
        yield self.ours, tensor.t() if self.transpose else tensor

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that returns ours by name."""
        tensor = get(self.ours)
        tensor = tensor.reshape((1,) * self.leading + tuple(tensor.shape))
        for name in (self.theirs, *self.copies):
            yield name, tensor.t().contiguous() if self.transpose else tensor

    def at(self, layer: str, number: int) -> Rename:
        """This operation for one layer: `layer` (`{n}` or `{e}`) replaced with its number."""
        return replace(self, theirs=self.theirs.replace(layer, str(number)), ours=self.ours.replace(layer, str(number)))

    def sized(self, config: ModelConfig) -> Rename:
        """This operation with the sizes of a configuration."""
        return self

    def prefixed(self, prefix: str) -> Rename:
        """This operation with a prefix added to their names."""
        return replace(self, theirs=prefix + self.theirs, copies=tuple(prefix + name for name in self.copies))


@dataclass(frozen=True)
class Split:
    """One fused tensor of theirs is several of ours, concatenated along the output axis.

    parts: `equal`; `grouped`: queries, keys and values with grouped-query attention; `interleaved`: the query, key and
    value of the first head, then those of the next; `by_group`: the queries, key and value of the first key/value head,
    then those of the next.
    """

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False
    parts: str = "equal"
    sizes: tuple[int, ...] = ()
    heads: int = 0
    groups: int = 0

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return list(self.ours)

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that returns theirs by name; views if possible."""
        fused = get(self.theirs)
        fused = fused.t() if self.transpose else fused
        yield from zip(self.ours, self._cut(fused), strict=True)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that returns ours by name."""
        parts = [get(name) for name in self.ours]
        if self.parts == "interleaved":
            rest = parts[0].shape[1:]
            fused = torch.stack([part.view(self.heads, -1, *rest) for part in parts], dim=1).flatten(0, 2)
        elif self.parts == "by_group":
            fused = torch.cat([part.view(self.groups, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)
        else:
            fused = torch.cat(parts, dim=0)
        yield self.theirs, fused.t().contiguous() if self.transpose else fused

    def _cut(self, fused: Tensor) -> Sequence[Tensor]:
        if self.parts == "interleaved":
            by_head = fused.reshape(self.heads, len(self.ours), -1, *fused.shape[1:])
            return [part.flatten(0, 1) for part in by_head.unbind(1)]
        if self.parts == "by_group" and fused.shape[0] == sum(self.sizes):
            by_group = fused.reshape(self.groups, -1, *fused.shape[1:])
            return [part.flatten(0, 1) for part in by_group.split([size // self.groups for size in self.sizes], dim=1)]
        if self.parts == "grouped" and sum(self.sizes) == fused.shape[0]:
            return fused.split(self.sizes, dim=0)
        return fused.chunk(len(self.ours), dim=0)

    def at(self, layer: str, number: int) -> Split:
        """This operation for one layer: `layer` (`{n}` or `{e}`) replaced with its number."""
        ours = tuple(name.replace(layer, str(number)) for name in self.ours)
        return replace(self, theirs=self.theirs.replace(layer, str(number)), ours=ours)

    def sized(self, config: ModelConfig) -> Split:
        """This operation with the sizes of a configuration."""
        query, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        sizes = (query, kv, kv) if self.parts in ("grouped", "by_group") else ()
        return replace(self, sizes=sizes, heads=config.num_attention_heads, groups=config.num_key_value_heads)

    def prefixed(self, prefix: str) -> Split:
        """This operation with a prefix added to their names."""
        return replace(self, theirs=prefix + self.theirs)


@dataclass(frozen=True)
class Computed:
    """A tensor that the model computes: checked if a file contains it, written if transformers needs it."""

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
        """No names: the model has no such parameter."""
        return []

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """No tensors: the model has no such parameter."""
        return iter(())

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensor, if it is written."""
        if self.written and self.config is not None:
            yield self.theirs, self.value(self.config)

    def agrees(self, tensor: Tensor) -> bool:
        """Whether a tensor of a file equals the computed one, within the precision of its dtype."""
        if self.config is None:
            return False
        ours = self.value(self.config)
        tolerance = 1e-5 if tensor.dtype in (torch.float32, torch.float64) else 1e-2
        return tensor.shape == ours.shape and torch.allclose(tensor.float(), ours, rtol=0.0, atol=tolerance)

    def at(self, layer: str, number: int) -> Computed:
        """This operation for one layer: `layer` (`{n}` or `{e}`) replaced with its number."""
        return replace(self, theirs=self.theirs.replace(layer, str(number)))

    def sized(self, config: ModelConfig) -> Computed:
        """This operation with the sizes of a configuration."""
        return replace(self, config=config)

    def prefixed(self, prefix: str) -> Computed:
        """This operation with a prefix added to their names."""
        return replace(self, theirs=prefix + self.theirs)


@dataclass(frozen=True)
class Stacked:
    """One tensor of theirs (experts, …) holds a matrix or bias of every expert; `ours` contain `{x}`.

    With several names each expert's matrix is several of ours, concatenated along the output axis, or `interleaved`:
    row 0 of the first, row 0 of the second, row 1 of the first and so on. `transpose`: theirs are (in, out).
    """

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False
    interleaved: bool = False
    experts: int = 0

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return [name for expert in range(self.experts) for name in self.of_expert(expert)]

    def of_expert(self, expert: int) -> list[str]:
        """Our names of one expert."""
        return [name.replace("{x}", str(expert)) for name in self.ours]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that returns theirs by name; views if possible."""
        for expert, stored in enumerate(get(self.theirs)):
            matrix, count = stored.t() if self.transpose else stored, len(self.ours)
            parts = [matrix[part::count] for part in range(count)] if self.interleaved else matrix.chunk(count)
            yield from zip(self.of_expert(expert), parts, strict=True)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensor, from a function that returns ours by name."""
        yield self.theirs, torch.stack([self._joined(expert, get) for expert in range(self.experts)])

    def _joined(self, expert: int, get: Callable[[str], Tensor]) -> Tensor:
        parts = [get(name) for name in self.of_expert(expert)]
        matrix = torch.stack(parts, dim=1).flatten(0, 1) if self.interleaved else torch.cat(parts)
        return matrix.t() if self.transpose else matrix

    def at(self, layer: str, number: int) -> Stacked:
        """This operation for one layer: `layer` (`{n}`) replaced with its number."""
        ours = tuple(name.replace(layer, str(number)) for name in self.ours)
        return replace(self, theirs=self.theirs.replace(layer, str(number)), ours=ours)

    def sized(self, config: ModelConfig) -> Stacked:
        """This operation with the sizes of a configuration."""
        return replace(self, experts=0 if config.experts is None else config.experts.num_experts)

    def prefixed(self, prefix: str) -> Stacked:
        """This operation with a prefix added to their names."""
        return replace(self, theirs=prefix + self.theirs)


@dataclass(frozen=True)
class PerHead:
    """A tensor of theirs for each head, `{i}` in their name, is a row of one of ours; `over`: heads or groups."""

    theirs: str
    ours: str
    over: str
    count: int = 0

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs.replace("{i}", str(number)) for number in range(self.count)]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return [self.ours]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensor, from a function that returns theirs by name."""
        yield self.ours, torch.stack([get(name) for name in self.sources])

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that returns ours by name."""
        yield from zip(self.sources, get(self.ours).unbind(0), strict=True)

    def at(self, layer: str, number: int) -> PerHead:
        """This operation for one layer: `layer` (`{n}` or `{e}`) replaced with its number."""
        return replace(self, theirs=self.theirs.replace(layer, str(number)), ours=self.ours.replace(layer, str(number)))

    def sized(self, config: ModelConfig) -> PerHead:
        """This operation with the sizes of a configuration."""
        counts = {"heads": config.num_attention_heads, "groups": config.num_key_value_heads}
        return replace(self, count=counts[self.over])

    def prefixed(self, prefix: str) -> PerHead:
        """This operation with a prefix added to their names."""
        return replace(self, theirs=prefix + self.theirs)


Operation = Rename | Split | Computed | Stacked | PerHead


def expand(operations: Sequence[Operation], config: ModelConfig) -> list[Operation]:
    """The operations for a configuration, one for each block of layers (`{n}`, `{e}`) and each expert (`{x}`)."""
    numbers = {
        "{n}": config.num_blocks,
        "{e}": config.num_encoder_layers,
        "{x}": 0 if config.experts is None else config.experts.num_experts,
    }
    expanded: list[Operation] = [
        operation.sized(config)
        for operation in operations
        if not isinstance(operation, Rename) or operation.when is None or operation.when(config)
    ]
    for mark, count in numbers.items():
        expanded = [
            one
            for operation in expanded
            for one in (
                [operation.at(mark, number) for number in range(count)] if mark in operation.theirs else [operation]
            )
        ]
    return expanded


def is_tied(config: ModelConfig) -> bool:
    """Whether the vocabulary head shares the embedding's matrix."""
    return config.tie_word_embeddings


def is_untied(config: ModelConfig) -> bool:
    """Whether the vocabulary head has a matrix of its own."""
    return not config.tie_word_embeddings


def vocabulary_bias(theirs: str, unused: str) -> list[Operation]:
    """The bias of a vocabulary head `theirs`, to which a tied model ties `unused`, its name in files.

    An untied model has both, and uses the first alone.
    """
    return [
        Rename(unused, "lm_head.bias", when=is_tied),
        Rename(theirs, "lm_head.bias", copies=(unused,), when=is_untied),
    ]


def renames(
    theirs: str, ours: str, leaves: Sequence[str] = ("weight", "bias"), transpose: bool = False
) -> list[Operation]:
    """Renames the weight and bias of a module; `transpose` applies to the weight."""
    return [Rename(f"{theirs}.{leaf}", f"{ours}.{leaf}", transpose and leaf == "weight") for leaf in leaves]
