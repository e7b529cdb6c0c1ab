"""LoRA: a frozen linear layer plus a trained product of two thin matrices (Hu et al. 2021, arXiv 2106.09685).

Rank-stabilised (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732) the product is scaled by alpha over the rank's root, so
that higher ranks learn as fast.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adaptation.layer import Adapted, draw_uniform, plain


class LoRALinear(Adapted):
    """base(x) + scaling * B A x, for x (…, in_features); A (rank, in_features), B (out_features, rank).

    B starts at zero, so that the layer starts as its base; A as in PEFT, uniform within 1 / sqrt(in_features).
    """

    method: ClassVar[str] = "lora"

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, *, stabilized: bool = False):
        super().__init__(base)
        self.rank, self.alpha, self.dropout, self.stabilized = rank, alpha, dropout, stabilized
        self.scaling = alpha / (math.sqrt(rank) if stabilized else rank)
        self.lora_A: Tensor
        self.lora_B: Tensor
        self.learn("lora_A", rank, self.in_features)
        self.learn("lora_B", self.out_features, rank)

    def draw(self, generator: torch.Generator | None) -> None:
        draw_uniform(self.lora_A, generator)
        with torch.no_grad():
            self.lora_B.zero_()

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        inputs = self.inputs(x)
        if self.dropout:
            inputs = F.dropout(inputs, self.dropout, self.training)
        # Scaled while it is thin, and added by the product itself: no pass over the wide output more than needed.
        thin = F.linear(inputs, self.lora_A) * self.scaling
        flat = result.reshape(-1, self.out_features)
        added = torch.addmm(flat.to(thin.dtype), thin.reshape(-1, self.rank), self.lora_B.t().to(thin.dtype))
        return added.view(result.shape).to(result.dtype)

    def delta(self) -> Tensor:
        """What the adapter adds to the weight (out_features, in_features), in float32."""
        return self.scaling * (self.lora_B.float() @ self.lora_A.float())

    def merged(self) -> tuple[Tensor, Tensor | None]:
        return plain(self.base).weight.float() + self.delta(), None

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"
