"""NF4 linear layers: four bits a weight, at the quantiles of a normal distribution, a scale for each block of 64.

Dettmers et al. 2023 (QLoRA, arXiv 2305.14314). With double quantization the scales take eight bits each, in the dynamic
format of Dettmers 2015 (arXiv 1511.04561), with a scale of their own for each 256 and one offset: 4.13 bits a weight.
Values are bitsandbytes', bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.compression import blockwise, nf4_kernels
from quatrain.compression.blockwise import dynamic_code
from quatrain.compression.layer import QuantizedLinear, check_finite, in_strips, looked_up

BLOCK, OUTER = 64, 256
"""Weights that share a scale, and scales that share one."""

CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values (QLoRA, appendix E)."""


class NF4Linear(QuantizedLinear):
    """y = x W^T + bias, for a W (out_features, in_features) that is worked out when it is needed, and not kept.

    Buffers: `weight` (ceil(N / 2), 1) uint8, two of the N weights a byte, the first in its upper half; `absmax`, a
    scale for each 64 weights, float32, or uint8 with `nested`, their scales, and `offset`, where it is `double`.
    """

    method: ClassVar[str] = "nf4"
    fixed_dtype: ClassVar[tuple[str, ...]] = ("absmax", "nested", "offset")
    weight: Tensor
    absmax: Tensor
    nested: Tensor
    offset: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, device: Any = None, *, double: bool = True
    ):
        super().__init__(in_features, out_features, bias, device)
        self.nests = double
        count = in_features * out_features
        blocks = math.ceil(count / BLOCK)
        self.register_buffer("weight", torch.zeros(math.ceil(count / 2), 1, dtype=torch.uint8, device=device))
        kind = torch.uint8 if double else torch.float32
        self.register_buffer("absmax", torch.zeros(blocks, dtype=kind, device=device))
        if double:
            self.register_buffer("nested", torch.zeros(math.ceil(blocks / OUTER), device=device))
            self.register_buffer("offset", torch.zeros((), device=device))

    def rounded(self, weight: Tensor) -> dict[str, Tensor]:
        return quantized(weight, double=self.nests)

    def scales(self) -> Tensor:
        """The scale of each block, float32."""
        if not self.nests:
            return self.absmax
        return scales_of(self.absmax, self.nested, self.offset)

    def plain_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantized(self.weight, self.scales(), (self.out_features, self.in_features), dtype)

    def product(self, x: Tensor) -> Tensor:
        scales, wide = self.scales(), self.in_features

        def strip(start: int, stop: int) -> Tensor:
            first, last = start * wide, stop * wide
            numbers = self.weight[first // 2 : math.ceil(last / 2)]
            return dequantized(numbers, scales[first // BLOCK : math.ceil(last / BLOCK)], (stop - start, wide), x.dtype)

        return in_strips(x, self.out_features, strip)

    def files(self, operation: Any) -> Any:
        from quatrain.compression.nf4_files import packed

        return packed(operation, self)

    def folder_entries(self, model: Any) -> dict[str, Any]:
        from quatrain.compression.nf4_files import quantization_config

        return quantization_config(model)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, double={self.nests}"


def quantized(weight: Tensor, *, double: bool = True) -> dict[str, Tensor]:
    """The buffers of a layer for a weight (out, in) of any float dtype. Raises InputError where it is not finite."""
    values = weight.reshape(-1).float()
    check_finite(values)
    numbers, absmax = blockwise.quantize(values, BLOCK, torch.tensor(CODE))
    numbers = F.pad(numbers, (0, len(numbers) % 2), value=len(CODE) // 2 - 1)
    found = {"weight": ((numbers[::2] << 4) | numbers[1::2])[:, None], "absmax": absmax}
    if double:
        offset = absmax.mean()
        found["absmax"], found["nested"] = blockwise.quantize(absmax - offset, OUTER, dynamic_code())
        found["offset"] = offset
    return found


def scales_of(absmax: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """The scales of blocks (B,) float32, out of their eight-bit numbers, the scales of those, and the offset."""
    return blockwise.dequantize(absmax, nested, OUTER, dynamic_code()) + offset


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two weights that each byte stands for (256, 2)."""
    code = torch.tensor(CODE)
    return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1).to(device)


def dequantized(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weights of this shape, worked out in float32 and rounded to `dtype`: by the faster of two ways, which agree
    to the bit.
    """
    fits = not torch.compiler.is_compiling() and nf4_kernels.takes(shape, BLOCK)
    if fits and nf4_kernels.kernel_is_faster(packed.device, dtype, BLOCK, looked_up_weights):
        return nf4_kernels.worked_out(packed, scales, BLOCK, shape, dtype)
    return looked_up_weights(packed, scales, shape, dtype)


def looked_up_weights(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The same by PyTorch alone."""
    return looked_up(packed, _pairs(packed.device), scales, BLOCK, math.prod(shape), dtype).view(*shape)
