"""FP8 weights: E4M3 floats with one scale per output channel.

Micikevicius et al. 2022 (arXiv 2209.05433): four bits of exponent, three of fraction, no infinity, at most 448. Weights
of very different sizes in one row lose less than in int8. Products are computed in the inputs' dtype, from the
dequantized weight; where the device multiplies FP8 (`has_products`), from the codes, with rounded inputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.compression import packing
from quatrain.compression.layer import QuantizedLinear, check_finite, matmul_in_strips

LARGEST = torch.finfo(torch.float8_e4m3fn).max
MULTIPLE = 16
"""What the sizes of a matrix must be a multiple of for FP8 products."""


def scaled_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (…, inputs) times an E4M3 weight (outputs, inputs) with a scale (outputs,): (…, outputs) in the dtype of x.

    The inputs become E4M3 with a scale for each row. `torch._scaled_mm` is private: ask `has_products` first.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    own = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / LARGEST
    codes = (rows / own).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    product = torch._scaled_mm(codes, weight.t(), scale_a=own, scale_b=scale.float()[None], out_dtype=torch.bfloat16)
    return product.view(*x.shape[:-1], -1).to(x.dtype)


@cache
def has_products(device: str) -> bool:
    """Whether a kind of device multiplies FP8 matrices faster than others: GPUs from Ada and Hopper on. Tried once."""
    if device != "cuda" or torch.cuda.get_device_capability() < (8, 9):
        return False
    try:
        weight = torch.eye(MULTIPLE, device=device)
        found = scaled_matmul(weight, weight.to(torch.float8_e4m3fn), torch.ones(MULTIPLE, device=device))
    except (RuntimeError, AttributeError, ValueError):  # A build of PyTorch without this private function.
        return False
    return torch.equal(found, weight)


class FP8Linear(QuantizedLinear):
    """y = x (weight * scale)^T + bias, weight float8_e4m3fn (out_features, in_features), scale (out_features,)."""

    method: ClassVar[str] = "fp8"
    fixed_dtype: ClassVar[tuple[str, ...]] = ("weight", "scale")
    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__(in_features, out_features, bias, device)
        weight = torch.zeros(out_features, in_features, device=device).to(torch.float8_e4m3fn)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", torch.ones(out_features, device=device))

    def _apply(self, fn: Any, *arguments: Any, **named: Any) -> Any:
        """A move keeps the weight's dtype, which `.to(dtype)` would change."""
        weight = self.weight
        super()._apply(fn, *arguments, **named)
        if self.weight.dtype != torch.float8_e4m3fn:
            self.weight = weight.to(self.weight.device)
        return self

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        weight = weight.float()
        check_finite(weight)
        absmax = weight.abs().amax(dim=1)
        scale = torch.where(absmax > 0, absmax / LARGEST, torch.ones_like(absmax))
        scaled = (weight / scale[:, None]).clamp_(-LARGEST, LARGEST)
        return {"weight": scaled.to(torch.float8_e4m3fn), "scale": scale}

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.weight.float() * self.scale.float()[:, None]).to(dtype)

    def matmul(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype)
        strips = matmul_in_strips(x, self.out_features, lambda start, stop: self.weight[start:stop].to(x.dtype))
        return strips * scale

    def inference(self, x: Tensor) -> Tensor:
        fits = not (self.in_features % MULTIPLE or self.out_features % MULTIPLE)
        return scaled_matmul(x, self.weight, self.scale) if fits and has_products(x.device.type) else self.matmul(x)

    def folder_operation(self, operation: Any) -> Any:
        return packing.integer_operation(operation)

    def quantization_config(self, model: Any) -> dict[str, Any]:
        return packing.quantization_config(model, packing.FLOAT_WEIGHTS, format=packing.FLOAT_FORMAT)
