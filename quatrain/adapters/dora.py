"""DoRA: LoRA for the direction of each weight row, with a trained magnitude (Liu et al. 2024, arXiv 2402.09353)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adapters.layer import dequantized
from quatrain.adapters.lora import LoRALinear


class DoRALinear(LoRALinear):
    """m (W + scaling * B A) / |W + scaling * B A| x + b, with a trained magnitude m (out_features,) for each row.

    The norm is a constant in the gradient (the paper's section 4.3). As in PEFT, dropout affects only the change that
    the adapter makes, not W x + b.
    """

    method: ClassVar[str] = "dora"
    only_adds: ClassVar[bool] = False

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, *, use_rslora: bool = False):
        super().__init__(base, rank, alpha, dropout, use_rslora=use_rslora)
        self.magnitude: Tensor
        self.add_parameter("magnitude", self.out_features)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        super().reset_parameters(generator)
        with torch.no_grad():
            self.magnitude.copy_(self.norm())

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The norm of each row of the weight with the adapter merged (out_features,), float32."""
        return torch.linalg.vector_norm(dequantized(self.base).weight.float() + self.delta(), dim=1)

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        factor = self.magnitude / self.norm()
        inputs = self.inputs(x)
        linear = dequantized(self.base)
        if self.dropout and self.training:
            inputs = F.dropout(inputs, self.dropout)
            own = F.linear(inputs, linear.weight.to(inputs.dtype))
        else:
            own = result.to(inputs.dtype) if linear.bias is None else result.to(inputs.dtype) - linear.bias
        thin = F.linear(inputs, self.lora_A) * self.scaling
        added = (factor - 1) * own + factor * F.linear(thin, self.lora_B.to(thin.dtype))
        return (result + added).to(result.dtype)

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        weight = dequantized(self.base).weight.float() + self.delta()
        return (self.magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None] * weight, None
