"""LoHa: the Hadamard product of two low-rank products, of rank up to r² (Hyeon-Woo et al. 2021, arXiv 2108.06098)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adapters.layer import AdapterLayer, init_uniform


class LoHaLinear(AdapterLayer):
    """base(x) + alpha / rank * ((a1 b1) ∘ (a2 b2)) x; a1, a2 (out_features, rank), b1, b2 (rank, in_features)."""

    method: ClassVar[str] = "loha"

    def __init__(self, base: nn.Module, rank: int, alpha: float):
        super().__init__(base)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.a1: Tensor
        self.b1: Tensor
        self.a2: Tensor
        self.b2: Tensor
        for number in (1, 2):
            self.add_parameter(f"a{number}", self.out_features, rank)
            self.add_parameter(f"b{number}", rank, self.in_features)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        for parameter in (self.a1, self.b1, self.a2):
            init_uniform(parameter, generator)
        with torch.no_grad():
            self.b2.zero_()

    def delta(self) -> Tensor:
        return self.scaling * (self.a1 @ self.b1) * (self.a2 @ self.b2)

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        inputs = self.inputs(x)
        return (result + F.linear(inputs, self.delta().to(inputs.dtype))).to(result.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}"
