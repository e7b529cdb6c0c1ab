"""IA³: scales keys, values and feed-forward activations by trained vectors (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from quatrain.adapters.layer import AdapterLayer, dequantized

TARGETS = ("k_proj", "v_proj", "down_proj")
"""Default targets, as in the paper."""


class IA3Linear(AdapterLayer):
    """base(x) ∘ l, or, with `inner`, base(x ∘ l), for the output projection of a feed-forward layer. l starts at 1."""

    method: ClassVar[str] = "ia3"

    def __init__(self, base: nn.Module, *, inner: bool = False):
        super().__init__(base)
        self.inner = inner
        self.scale: Tensor
        self.add_parameter("scale", self.in_features if inner else self.out_features)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.scale.fill_(1)

    def before(self, x: Tensor) -> Tensor:
        return (x * self.scale).to(x.dtype) if self.inner else x

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        return result if self.inner else (result * self.scale).to(result.dtype)

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        linear = dequantized(self.base)
        if self.inner:
            return linear.weight.float() * self.scale, None
        bias = None if linear.bias is None else linear.bias.float() * self.scale
        return linear.weight.float() * self.scale[:, None], bias

    def extra_repr(self) -> str:
        return f"inner={self.inner}"
