"""Reversible operations between a family's weight names and ours: rename, transpose, split.

Names may hold `{n}`, which stands for every layer. An operation reads (theirs to ours) and writes (ours to
theirs), so that one list maps a checkpoint both ways, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


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
        """Our tensors, from a function that gives theirs by name."""
        tensor = get(self.theirs)
        yield self.ours, tensor.t().contiguous() if self.transpose else tensor

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        tensor = get(self.ours)
        yield self.theirs, tensor.t().contiguous() if self.transpose else tensor

    def at(self, layer: int) -> Rename:
        """This operation for one layer."""
        return replace(self, theirs=self.theirs.format(n=layer), ours=self.ours.format(n=layer))


@dataclass(frozen=True)
class Split:
    """One fused tensor of theirs is several of ours, of equal size, side by side along the output axis."""

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [self.theirs]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return list(self.ours)

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that gives theirs by name."""
        fused = get(self.theirs)
        fused = fused.t() if self.transpose else fused
        for name, part in zip(self.ours, fused.chunk(len(self.ours), dim=0), strict=True):
            yield name, part.contiguous()

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        fused = torch.cat([get(name) for name in self.ours], dim=0)
        yield self.theirs, fused.t().contiguous() if self.transpose else fused

    def at(self, layer: int) -> Split:
        """This operation for one layer."""
        return replace(self, theirs=self.theirs.format(n=layer), ours=tuple(name.format(n=layer) for name in self.ours))


Operation = Rename | Split


def expand(operations: Sequence[Operation], num_layers: int) -> list[Operation]:
    """The operations with `{n}` written out for every layer."""
    expanded: list[Operation] = []
    for operation in operations:
        if "{n}" in operation.theirs:
            expanded.extend(operation.at(layer) for layer in range(num_layers))
        else:
            expanded.append(operation)
    return expanded
