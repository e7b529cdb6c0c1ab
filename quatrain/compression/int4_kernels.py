"""PyTorch's products that read a weight of four bits, each with its order of the numbers, and the way back.

They are private to PyTorch, so that each is looked for, and tried where it is to be used.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

ROWS = 64
"""Outputs that a layer must have a multiple of: processors' kernels take them in blocks of up to so many."""
PART = 1 << 22
"""Numbers that are turned at a time, as what lies between takes eight times their bytes."""


class Kernel(Protocol):
    """One kernel. `rows` are numbers (out, in / 2) of two a byte, the first in its lower half."""

    def fits(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        """Whether it takes layers of this shape and activations of this dtype."""

    def pack(self, rows: Tensor) -> Tensor:
        """The numbers in its order, of as many bytes."""

    def unpack(self, packed: Tensor, out_features: int, in_features: int) -> Tensor:
        """The inverse of `pack`."""

    def product(self, x: Tensor, packed: Tensor, group: int, factors: Tensor) -> Tensor:
        """x (N, in) to (N, out); `factors` (in / group, out, 2) are scales and what is added to them."""


@cache
def kernel_of(device: str) -> Kernel | None:
    """The kernel of a type of device, or None."""
    names = {
        "cpu": ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu"),
        "cuda": ("_convert_weight_to_int4pack", "_weight_int4pack_mm"),
    }
    if device not in names or not all(hasattr(torch.ops.aten, name) for name in names[device]):
        return None
    if device == "cuda":
        return CudaKernel()
    try:
        found = CpuKernel()
    except RuntimeError:
        return None
    return found if found.known else None


class CpuKernel:
    """The kernel for processors. It takes a block of outputs, 64 or 32 by the processor, and keeps, input by input,
    half as many bytes, whose halves are numbers of the block in an order that is found out by a block of known ones.
    """

    def __init__(self) -> None:
        self.known = False
        for block in (64, 32):
            numbers = torch.arange(block)
            # Each output's number, in two inputs of four bits.
            known = torch.stack([numbers & 15, numbers >> 4], dim=1).int()
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(known, 1).reshape(-1)
            low, high = (half.view(2, -1).long() for half in (packed & 15, packed >> 4))
            order = torch.cat([low[0] | (low[1] << 4), high[0] | (high[1] << 4)])
            self.block, self.position = block, order.argsort()
            draw = torch.randint(256, (2 * ROWS, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            if torch.equal(order.sort().values, numbers) and torch.equal(self.unpack(self.pack(draw), 128, 32), draw):
                self.known = True
                break

    def fits(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        return in_features % 2 == 0 and out_features % ROWS == 0 and dtype in (torch.bfloat16, torch.float32)

    def pack(self, rows: Tensor) -> Tensor:
        step = max(ROWS, PART // (2 * rows.shape[1]) // ROWS * ROWS)
        parts = []
        for part in rows.split(step):
            numbers = torch.stack([part & 15, part >> 4], dim=-1).view(len(part), -1).int()
            parts.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1).view(len(part), -1))
        return torch.cat(parts)

    def unpack(self, packed: Tensor, out_features: int, in_features: int) -> Tensor:
        columns = packed.view(-1, in_features, self.block // 2)
        found = torch.empty_like(packed).view(-1, self.block, in_features // 2)
        step = max(1, PART // (self.block * in_features))
        for start in range(0, len(columns), step):
            turned = columns[start : start + step].transpose(1, 2).contiguous().view(torch.int16)
            # Two inputs a word: their lower halves are those of one output, their upper ones of another.
            low, high = turned & 0x0F0F, (turned >> 4) & 0x0F0F
            numbers = torch.cat([(half | (half >> 4)).to(torch.uint8) for half in (low, high)], dim=1)
            torch.index_select(numbers, 1, self.position, out=found[start : start + step])
        return found.view(out_features, in_features // 2)

    def product(self, x: Tensor, packed: Tensor, group: int, factors: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, factors)
        return found


class CudaKernel:
    """The kernel for CUDA, in bfloat16. Its order is its own affair: it gives the numbers back itself, as the product
    with the unit matrix, which is exact.
    """

    TILES = 8
    """Tiles of 16 inputs that lie together."""

    def fits(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        return in_features % (16 * self.TILES) == 0 and out_features % ROWS == 0 and dtype == torch.bfloat16

    def pack(self, rows: Tensor) -> Tensor:
        turned = (rows << 4) | (rows >> 4)  # which wants the first of two in the upper half
        found: Tensor = torch.ops.aten._convert_weight_to_int4pack(turned, self.TILES)
        return found

    def unpack(self, packed: Tensor, out_features: int, in_features: int) -> Tensor:
        ones = torch.ones(in_features // 32, out_features, 1, dtype=torch.bfloat16, device=packed.device)
        factors = torch.cat([ones, torch.zeros_like(ones)], dim=-1)
        unit = torch.eye(in_features, dtype=torch.bfloat16, device=packed.device)
        numbers = (self.product(unit, packed, 32, factors).t() + 8).to(torch.uint8)
        return numbers[:, ::2] | (numbers[:, 1::2] << 4)

    def product(self, x: Tensor, packed: Tensor, group: int, factors: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int4pack_mm(x, packed, group, factors)
        return found
