"""Weight-only int8 linear layers: one scale for each output channel, symmetric, rounded to the nearest.

As the weight-only baseline in Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339) and Xiao et al. 2023 (SmoothQuant,
arXiv 2211.10438): weights take a quarter of float32's memory, activations stay as they are. Numbers are bitsandbytes',
and its scales are 127 of ours; for a row of zeros ours is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.compression import packing
from quatrain.compression.layer import QuantizedLinear, bucket, check_finite, in_strips, is_faster

LEVELS = 127
"""Steps on either side of zero."""
VECTOR = 64
"""Sizes that are a multiple of this suit PyTorch's int8 kernel on every processor."""
MOST_ROWS = 64
"""What is faster for this many rows is faster for more of them."""


class Int8Linear(QuantizedLinear):
    """y = x (weight * scale)^T + bias, weight int8 (out_features, in_features), scale (out_features,).

    Two ways to compute it agree up to rounding; the faster one for the dtype, shape and number of rows is taken, by
    measuring each once in a process.
    """

    method: ClassVar[str] = "int8"
    fixed_dtype: ClassVar[tuple[str, ...]] = ("scale",)
    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__(in_features, out_features, bias, device)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, device=device))

    def rounded(self, weight: Tensor) -> dict[str, Tensor]:
        weight = weight.float()
        check_finite(weight)
        largest = weight.abs().amax(dim=1)
        largest = torch.where(largest > 0, largest, LEVELS)
        scale = largest / LEVELS
        numbers = (weight * (LEVELS / largest)[:, None]).round_().clamp_(-LEVELS, LEVELS)
        return {"weight": numbers.to(torch.int8), "scale": scale}

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.weight * self.scale.float()[:, None]).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        return dequantized(x, self.weight, self.scale)

    def product_back(self, gradient: Tensor) -> Tensor:
        return (gradient * self.scale.to(gradient.dtype)) @ self.weight.to(gradient.dtype)

    def inference(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if not rows:
            return self.product(x)
        sizes = self.in_features, self.out_features, bucket(rows, MOST_ROWS)
        return fastest_path(x.dtype, x.device.type, *sizes)(x, self.weight, self.scale)

    def files(self, operation: Any) -> Any:
        return packing.packed(operation, self.method, 8, self.in_features)

    def folder_entries(self, model: Any) -> dict[str, Any]:
        return packing.quantization_config(model, packing.WEIGHTS[8])


def dequantized(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product with the weight turned into x's dtype, the scale put on the result."""
    return in_strips(x, len(weight), lambda start, stop: weight[start:stop].to(x.dtype)) * scale.to(x.dtype)


def packed_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product by PyTorch's int8 kernel, which reads the weight as it is; no gradients."""
    flat = x.reshape(-1, x.shape[-1])
    product = torch._weight_int8pack_mm(flat, weight, scale.to(x.dtype))
    return product.view(*x.shape[:-1], weight.shape[0])


Path = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def fastest_path(dtype: torch.dtype, device: str, in_features: int, out_features: int, rows: int) -> Path:
    """The faster of the ways to multiply `rows` rows, measured here; one that fails or disagrees is never taken."""
    # The kernel reads whole vectors, past the end of rows that are no multiple of one (up to a crash).
    if not hasattr(torch, "_weight_int8pack_mm") or in_features % VECTOR or out_features % VECTOR:
        return dequantized
    # Its time grows with every row; what is turned once does not: where fewer rows are slower, more of them are.
    if rows > 1 and fastest_path(dtype, device, in_features, out_features, rows // 2) is dequantized:
        return dequantized
    x = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    weight = torch.randint(-LEVELS, LEVELS + 1, (out_features, in_features), dtype=torch.int8, device=device)
    scale = torch.full((out_features,), 0.01, device=device)
    ways = (lambda: packed_product(x, weight, scale)), (lambda: dequantized(x, weight, scale))
    return packed_product if is_faster(*ways, dtype) else dequantized
