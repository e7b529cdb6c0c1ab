"""LoKr: a Kronecker product as the change of a weight (Edalati et al. 2022, arXiv 2212.10650; LyCORIS, 2309.14859)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adapters.layer import AdapterLayer, init_uniform


class LoKrLinear(AdapterLayer):
    """base(x) + alpha / rank * (w1 ⊗ w2) x.

    w1 is the small factor and w2 the large one; `kronecker_sides` gives their shapes. w2 is a low-rank product
    w2_a w2_b where that has fewer parameters; with `decompose_both` so is w1. `decompose_factor` is the preferred side
    of w1.
    """

    method: ClassVar[str] = "lokr"

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, *, decompose_factor: int = -1, decompose_both: bool = False
    ):
        super().__init__(base)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.decompose_factor, self.decompose_both = decompose_factor, decompose_both
        in1, in2 = kronecker_sides(self.in_features, decompose_factor)
        out1, out2 = kronecker_sides(self.out_features, decompose_factor)
        if decompose_both and rank < max(out1, in1) / 2:
            self.add_parameter("w1_a", out1, rank)
            self.add_parameter("w1_b", rank, in1)
        else:
            self.add_parameter("w1", out1, in1)
        if rank < max(out2, in2) / 2:
            self.add_parameter("w2_a", out2, rank)
            self.add_parameter("w2_b", rank, in2)
        else:
            self.add_parameter("w2", out2, in2)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        for name, parameter in self.adapter_parameters().items():
            if name in ("w1", "w1_a"):  # the layer begins as its base
                with torch.no_grad():
                    parameter.zero_()
            else:
                init_uniform(parameter, generator)

    def _factor(self, name: str) -> Tensor:
        own = self.adapter_parameters()
        return own[name] if name in own else own[f"{name}_a"] @ own[f"{name}_b"]

    def delta(self) -> Tensor:
        return self.scaling * torch.kron(self._factor("w1"), self._factor("w2"))

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        inputs = self.inputs(x)
        first, second = (self._factor(name).to(inputs.dtype) for name in ("w1", "w2"))
        # (w1 ⊗ w2) x without the product: x as a matrix (in1, in2) goes through w2 by rows and w1 by columns.
        rows = F.linear(inputs.unflatten(-1, (first.shape[1], second.shape[1])), second)
        added = torch.einsum("oi,...ik->...ok", first, rows).flatten(-2)
        return (result + self.scaling * added).to(result.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}"


def kronecker_sides(size: int, factor: int = -1) -> tuple[int, int]:
    """Split a dimension into two sides whose product is `size`, as LyCORIS does.

    `factor` comes first if it divides `size`. Otherwise the first side is the largest divisor of `size` that is at most
    its square root, and at most `factor` if one is given.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = next(number for number in range(max(1, limit), 0, -1) if size % number == 0)
    return small, size // small
