"""Weight-only int8 linear layers: symmetric, one scale per output channel, rounded to the nearest.

The weight-only baseline of Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339) and Xiao et al. 2023 (SmoothQuant,
arXiv 2211.10438): weights take a quarter of float32's memory, activations keep their dtype. The quantized values equal
bitsandbytes'; its scales are 127 times ours, and a row of zeros has the scale 1 here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.compression import packing
from quatrain.compression.integers import IntegerLinear
from quatrain.compression.layer import is_faster, matmul_in_strips, row_bucket
from quatrain.models.kernels.stored import StoredWeight

LEVELS = 127
"""Quantization steps on either side of zero."""
TOKEN_STEPS = 127.5
"""Half the steps of an activation's scale."""
VECTOR = 64
"""PyTorch's int8 kernel is safe on every processor if both sizes are multiples of this."""
MAX_MEASURED_ROWS = 64
"""An implementation that is faster for so many rows is faster for more."""


class Int8Linear(IntegerLinear):
    """y = x (weight * scale)^T + bias, weight int8 (out_features, in_features), scale (out_features,).

    Two implementations of the product agree up to rounding. The faster one for the dtype, shape and number of rows is
    used; each process measures them once.
    """

    method: ClassVar[str] = "int8"
    levels: ClassVar[tuple[int, int]] = (-LEVELS, LEVELS)
    stored_format: ClassVar[str | None] = "int8"
    fixed_dtype: ClassVar[tuple[str, ...]] = ("scale",)
    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__(in_features, out_features, bias, device)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, device=device))

    def rounded_scale(self, absmax: Tensor) -> Tensor:
        return absmax / LEVELS

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        # bitsandbytes multiplies with the inverse.
        absmax = weight.float().abs().amax(dim=1)
        absmax = torch.where(absmax > 0, absmax, LEVELS)
        return (weight.float() * (LEVELS / absmax)[:, None]).round_().clamp_(*self.levels)

    def pack(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"weight": codes.to(torch.int8), "scale": scale.reshape(-1)}

    def unpacked(self, buffers: dict[str, Tensor]) -> Tensor:
        return buffers["weight"].float() * buffers["scale"].float()[:, None]

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.weight * self.scale.float()[:, None]).to(dtype)

    def matmul(self, x: Tensor) -> Tensor:
        return dequantized_matmul(x, self.weight, self.scale)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return (gradient * self.scale.to(gradient.dtype)) @ self.weight.to(gradient.dtype)

    def inference(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if not rows:
            return self.matmul(x)
        sizes = self.in_features, self.out_features, row_bucket(rows, MAX_MEASURED_ROWS)
        return fastest_matmul(x.dtype, x.device.type, *sizes)(x, self.weight, self.scale)

    def stored_weight(self) -> StoredWeight:
        return StoredWeight("int8", self.weight, self.out_features, self.in_features, self.scale.float())

    def folder_operation(self, operation: Any) -> Any:
        return packing.packed_operation(operation, 8, self.in_features)

    def quantization_config(self, model: Any) -> dict[str, Any]:
        return packing.quantization_config(model, packing.WEIGHTS[8])


def dequantized_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product with the weight cast to x's dtype; the result is scaled."""
    return matmul_in_strips(x, len(weight), lambda start, stop: weight[start:stop].to(x.dtype)) * scale.to(x.dtype)


def kernel_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product by PyTorch's int8 kernel, which reads the int8 weight directly; no gradients."""
    flat = x.reshape(-1, x.shape[-1])
    y = torch._weight_int8pack_mm(flat, weight, scale.to(x.dtype))
    return y.view(*x.shape[:-1], weight.shape[0])


Matmul = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def fastest_matmul(dtype: torch.dtype, device: str, in_features: int, out_features: int, rows: int) -> Matmul:
    """The faster product for `rows` rows, measured here. A kernel that fails or disagrees is never used."""
    # The kernel reads whole vectors: with other sizes it reads past the end of a row, up to a crash.
    if not hasattr(torch, "_weight_int8pack_mm") or in_features % VECTOR or out_features % VECTOR:
        return dequantized_matmul
    # Its time grows with the rows, the cast's does not: a kernel that is slower for few rows is slower for more.
    if rows > 1 and fastest_matmul(dtype, device, in_features, out_features, rows // 2) is dequantized_matmul:
        return dequantized_matmul
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=draw).to(device, dtype)
    weight = torch.randint(-LEVELS, LEVELS + 1, (out_features, in_features), dtype=torch.int8, generator=draw).to(
        device
    )
    scale = torch.full((out_features,), 0.01, device=device)
    faster = is_faster(lambda: kernel_matmul(x, weight, scale), lambda: dequantized_matmul(x, weight, scale), dtype)
    return kernel_matmul if faster else dequantized_matmul


class W8A8Linear(Int8Linear):
    """int8 weights and int8 activations (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438; ZeroQuant's dynamic scales).

    Each token's input is rounded to int8 with a scale of its own; the product runs in integers and is scaled after.
    """

    method: ClassVar[str] = "w8a8"
    stored_format: ClassVar[str | None] = None

    def matmul(self, x: Tensor) -> Tensor:
        codes, scale = quantize_tokens(x)
        return integer_matmul(codes, self.weight).to(x.dtype) * (scale.to(x.dtype) * self.scale.to(x.dtype))

    def inference(self, x: Tensor) -> Tensor:
        return self.matmul(x)

    def folder_operation(self, operation: Any) -> Any:
        return packing.integer_operation(operation)

    def quantization_config(self, model: Any) -> dict[str, Any]:
        return packing.quantization_config(
            model, packing.WEIGHTS[8], format=packing.INTEGER_FORMAT, activations=packing.ACTIVATIONS
        )


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of x (…, C) and the scale (…, 1) of each token, float32, equal to those of compressed-tensors."""
    absmax = x.float().abs().amax(-1, keepdim=True)
    scale = torch.where(absmax > 0, absmax / TOKEN_STEPS, torch.ones_like(absmax))
    return (x.float() / scale).round_().clamp_(-128, 127).to(torch.int8), scale


def integer_matmul(codes: Tensor, weight: Tensor) -> Tensor:
    """codes (…, in) times weight (out, in) transposed, both int8, exact: float32 of the int32 sums."""
    flat = codes.reshape(-1, codes.shape[-1])
    try:
        sums = torch._int_mm(flat, weight.t()).float()
    except (RuntimeError, NotImplementedError, AttributeError):
        # Products of 14 bits are exact in float32 up to 1,040 of them, and float64 is exact for all.
        exact = torch.float32 if flat.shape[-1] <= 1040 else torch.float64
        sums = (flat.to(exact) @ weight.t().to(exact)).float()
    return sums.view(*codes.shape[:-1], len(weight))
