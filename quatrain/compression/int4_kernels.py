"""PyTorch's int4 matrix products, each with its own weight layout and the conversion back.

They are private operators of PyTorch: each is feature-detected, and tried before it is used.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

OUTPUT_BLOCK = 64
"""The number of outputs must be a multiple of this: CPU kernels read blocks of up to 64 outputs."""
CHUNK = 1 << 22
"""Weights that are converted at a time: the intermediate tensors take eight times their bytes."""


class Kernel(Protocol):
    """A kernel of one device type. Packed values are (out, in / 2) uint8, the first of a pair in the lower half."""

    def supports(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        """Whether the kernel takes layers of this shape and activations of this dtype."""

    def pack(self, values: Tensor) -> Tensor:
        """Converts packed values to the kernel's layout, which has the same number of bytes."""

    def unpack(self, packed: Tensor, out_features: int, in_features: int) -> Tensor:
        """The inverse of `pack`."""

    def matmul(self, x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
        """x (N, in) to (N, out); `scales` (in / group, out, 2) holds scales and zero points."""


@cache
def device_kernel(device: str) -> Kernel | None:
    """The kernel of a device type; None if there is none."""
    names = {
        "cpu": ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu"),
        "cuda": ("_convert_weight_to_int4pack", "_weight_int4pack_mm"),
    }
    if device not in names or not all(hasattr(torch.ops.aten, name) for name in names[device]):
        return None
    if device == "cuda":
        return CudaKernel()
    try:
        kernel = CpuKernel()
    except RuntimeError:
        return None
    return kernel if kernel.usable else None


class CpuKernel:
    """The CPU kernel. It stores a block of outputs (64 or 32, by processor) input by input, in half as many bytes.

    The order of the outputs within these bytes depends on the processor; it is read off a converted block of known
    values.
    """

    def __init__(self) -> None:
        self.usable = False
        for block in (64, 32):
            outputs = torch.arange(block)
            # Each output's index, as two 4-bit inputs.
            known = torch.stack([outputs & 15, outputs >> 4], dim=1).int()
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(known, 1).reshape(-1)
            low, high = (half.view(2, -1).long() for half in (packed & 15, packed >> 4))
            order = torch.cat([low[0] | (low[1] << 4), high[0] | (high[1] << 4)])
            self.block, self.position = block, order.argsort()
            draw = torch.Generator().manual_seed(0)
            values = torch.randint(256, (2 * OUTPUT_BLOCK, 16), dtype=torch.uint8, generator=draw)
            complete = torch.equal(order.sort().values, outputs)
            if complete and torch.equal(self.unpack(self.pack(values), 2 * OUTPUT_BLOCK, 32), values):
                self.usable = True
                break

    def supports(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        return in_features % 2 == 0 and out_features % OUTPUT_BLOCK == 0 and dtype in (torch.bfloat16, torch.float32)

    def pack(self, values: Tensor) -> Tensor:
        step = max(OUTPUT_BLOCK, CHUNK // (2 * values.shape[1]) // OUTPUT_BLOCK * OUTPUT_BLOCK)
        packed = []
        for chunk in values.split(step):
            unpaired = torch.stack([chunk & 15, chunk >> 4], dim=-1).view(len(chunk), -1).int()
            packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpaired, 1).view(len(chunk), -1))
        return torch.cat(packed)

    def unpack(self, packed: Tensor, out_features: int, in_features: int) -> Tensor:
        columns = packed.view(-1, in_features, self.block // 2)
        values = torch.empty_like(packed).view(-1, self.block, in_features // 2)
        step = max(1, CHUNK // (self.block * in_features))
        for start in range(0, len(columns), step):
            words = columns[start : start + step].transpose(1, 2).contiguous().view(torch.int16)
            # A word has two inputs: its lower 4-bit halves belong to one output, the upper halves to another.
            low, high = words & 0x0F0F, (words >> 4) & 0x0F0F
            pairs = torch.cat([(half | (half >> 4)).to(torch.uint8) for half in (low, high)], dim=1)
            torch.index_select(pairs, 1, self.position, out=values[start : start + step])
        return values.view(out_features, in_features // 2)

    def matmul(self, x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales)
        return y


class CudaKernel:
    """The CUDA kernel, in bfloat16. It unpacks by multiplying with the identity matrix, which is exact, so that its
    layout need not be known.
    """

    INNER_TILES = 8
    """Tiles of 16 inputs that are stored together."""

    def supports(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        fits = in_features % (16 * self.INNER_TILES) == 0 and out_features % OUTPUT_BLOCK == 0
        return fits and dtype == torch.bfloat16

    def pack(self, values: Tensor) -> Tensor:
        swapped = (values << 4) | (values >> 4)  # the kernel expects the first of a pair in the upper half
        packed: Tensor = torch.ops.aten._convert_weight_to_int4pack(swapped, self.INNER_TILES)
        return packed

    def unpack(self, packed: Tensor, out_features: int, in_features: int) -> Tensor:
        ones = torch.ones(in_features // 32, out_features, 1, dtype=torch.bfloat16, device=packed.device)
        scales = torch.cat([ones, torch.zeros_like(ones)], dim=-1)
        identity = torch.eye(in_features, dtype=torch.bfloat16, device=packed.device)
        values = (self.matmul(identity, packed, 32, scales).t() + 8).to(torch.uint8)
        return values[:, ::2] | (values[:, 1::2] << 4)

    def matmul(self, x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x, packed, group, scales)
        return y
