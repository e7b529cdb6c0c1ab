"""Quantized layers whose weight is an integer times a scale: what calibration and fake quantization need of them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quatrain.compression.layer import QuantizedLinear, check_finite


class IntegerLinear(QuantizedLinear):
    """W = codes * scale, symmetric, with one scale for each `columns_per_scale` weights of a row.

    A subclass says how codes and scales are stored (`pack`), and how a scale is rounded (`rounded_scale`).
    """

    levels: ClassVar[tuple[int, int]]
    """The lowest and the highest code."""

    @property
    def columns_per_scale(self) -> int:
        """Consecutive weights of a row that share a scale."""
        return self.in_features

    def rounded_scale(self, absmax: Tensor) -> Tensor:
        """The scale of weights with these largest absolute values, in the dtype in which it is stored."""
        raise NotImplementedError

    def pack(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The buffers for codes (out, in), of any dtype, and their scales (out, groups)."""
        raise NotImplementedError

    def unpacked(self, buffers: dict[str, Tensor]) -> Tensor:
        """The weight (out, in) in float32 that buffers stand for."""
        raise NotImplementedError

    def scales(self, weight: Tensor) -> Tensor:
        """The scales (out, groups) of a weight (out, in); 1 for a group of zeros."""
        groups = weight.float().reshape(weight.shape[0], -1, self.columns_per_scale)
        absmax = groups.abs().amax(dim=2)
        scale = self.rounded_scale(absmax)
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    def column_scales(self, weight: Tensor) -> Tensor:
        """The scale (out, in) of each value of a weight, in float32."""
        return self.scales(weight).float().repeat_interleave(self.columns_per_scale, dim=1)

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The nearest codes (out, in), in float32, for scales (out, groups)."""
        groups = weight.float().reshape(weight.shape[0], -1, self.columns_per_scale)
        return (groups / scale.float()[..., None]).round_().clamp_(*self.levels).view(weight.shape)

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        check_finite(weight)
        scale = self.scales(weight)
        return self.pack(self.codes(weight, scale), scale)

    def round_trip(self, weight: Tensor) -> Tensor:
        """The weight (out, in) in float32 as it is after quantization, computed without packing it."""
        scale = self.scales(weight)
        codes = self.codes(weight, scale).view(weight.shape[0], -1, self.columns_per_scale)
        return (codes * scale.float()[..., None]).view(weight.shape)
