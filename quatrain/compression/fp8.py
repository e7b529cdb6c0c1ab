"""FP8 weights: E4M3 floats with one scale per output channel.

Micikevicius et al. 2022 (arXiv 2209.05433): four bits of exponent, three of fraction, no infinity, at most 448. Weights
of very different sizes in one row lose less than in int8. Products are computed in the inputs' dtype, from the
dequantized weight.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.compression import packing
from quatrain.compression.layer import QuantizedLinear, check_finite, matmul_in_strips

LARGEST = torch.finfo(torch.float8_e4m3fn).max


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

    def folder_operation(self, operation: Any) -> Any:
        return packing.integer_operation(operation)

    def quantization_config(self, model: Any) -> dict[str, Any]:
        return packing.quantization_config(model, packing.FLOAT_WEIGHTS, format=packing.FLOAT_FORMAT)
