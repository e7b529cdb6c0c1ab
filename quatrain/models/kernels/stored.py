"""How a linear layer hands its weight to native code, in the bits in which it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a linear layer in the bits in which it is stored, for products that expand it in registers.

    data: contiguous, the rows one after the other. scale: for int8 (rows,) float32; for int4 (rows, columns / group)
    bfloat16, the weight being scale * (number - 8), the first of two numbers in the lower half of a byte.
    """

    format: str
    data: Tensor
    rows: int
    columns: int
    scale: Tensor | None = None
    group: int = 0


@runtime_checkable
class HasStoredWeight(Protocol):
    """A quantized linear layer that native code can read."""

    stored_format: str | None
    """How it is stored; None if native code has no product for it."""

    def stored_weight(self) -> StoredWeight:
        """The weight, which the layer from then on holds as it is."""
