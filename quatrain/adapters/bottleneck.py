"""Bottleneck adapters: a small network and a residual behind a frozen layer (Houlsby et al. 2019, arXiv 1902.00751)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adapters.layer import AdapterLayer, init_uniform
from quatrain.core.errors import InputError

TARGETS = ("o_proj", "down_proj")
"""Default targets, as in the paper: the output projections of attention and of the feed-forward network."""
REDUCTION = 16
"""Default ratio of the layer's width to the bottleneck's."""


class BottleneckLinear(AdapterLayer):
    """y + up gelu(down y + b) + c for y = base(x).

    down (bottleneck_dim, out_features), up (out_features, bottleneck_dim). up and c start at zero, so that a new layer
    computes what its base does.
    """

    method: ClassVar[str] = "bottleneck"
    merges: ClassVar[bool] = False

    def __init__(self, base: nn.Module, bottleneck_dim: int = 0):
        super().__init__(base)
        self.bottleneck_dim = bottleneck_dim or max(1, self.out_features // REDUCTION)
        self.down: Tensor
        self.down_bias: Tensor
        self.up: Tensor
        self.up_bias: Tensor
        self.add_parameter("down", self.bottleneck_dim, self.out_features)
        self.add_parameter("down_bias", self.bottleneck_dim)
        self.add_parameter("up", self.out_features, self.bottleneck_dim)
        self.add_parameter("up_bias", self.out_features)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        init_uniform(self.down, generator)
        with torch.no_grad():
            for parameter in (self.down_bias, self.up, self.up_bias):
                parameter.zero_()

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        inside = F.gelu(F.linear(self.inputs(result), self.down, self.down_bias))
        return (result + F.linear(inside, self.up, self.up_bias)).to(result.dtype)

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        """Raises InputError: a bottleneck is not linear."""
        raise InputError("A bottleneck is not linear, so it cannot be merged; use the adapter's folder as it is.")

    def extra_repr(self) -> str:
        return f"bottleneck_dim={self.bottleneck_dim}"
