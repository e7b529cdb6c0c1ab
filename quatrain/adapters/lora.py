"""LoRA: a frozen linear layer plus a trained product of two thin matrices (Hu et al. 2021, arXiv 2106.09685).

rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) scales the product by alpha / sqrt(rank), so that higher ranks learn as
fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from quatrain.adapters.layer import AdapterLayer, init_uniform
from quatrain.compression.layer import QuantizedLinear


class LoRALinear(AdapterLayer):
    """base(x) + scaling * B A x, for x (…, in_features); A (rank, in_features), B (out_features, rank).

    B starts at zero, so that a new layer computes what its base does; A is uniform within
    ±1 / sqrt(in_features), as in PEFT.
    """

    method: ClassVar[str] = "lora"
    only_adds: ClassVar[bool] = True
    """Whether the output is exactly the base's plus the product."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, *, use_rslora: bool = False):
        super().__init__(base)
        self.rank, self.alpha, self.dropout, self.use_rslora = rank, alpha, dropout, use_rslora
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.rounding: Callable[[Tensor], Tensor] | None = None
        """Rounds the merged weight in the forward pass (`compression.constrained`)."""
        self.lora_A: Tensor
        self.lora_B: Tensor
        self.add_parameter("lora_A", rank, self.in_features)
        self.add_parameter("lora_B", self.out_features, rank)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        init_uniform(self.lora_A, generator)
        with torch.no_grad():
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.rounding is not None:
            base: Any = self.base
            merged = base.weight + self.scaling * (self.lora_B @ self.lora_A).to(base.weight.dtype)
            return F.linear(x, self.rounding(merged), base.bias)
        if self._can_fuse(x):
            output: Tensor = _FusedLoRA.apply(x, self.lora_A, self.lora_B, self.base, self.scaling)
            return output
        return super().forward(x)

    def _can_fuse(self, x: Tensor) -> bool:
        """Whether base and adapter can run as one autograd function: no dropout, one dtype, a frozen base."""
        if not self.only_adds or (self.dropout and self.training):
            return False
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return False
        if not isinstance(self.base, QuantizedLinear) and type(self.base) is not nn.Linear:
            return False
        floats = [parameter for parameter in self.base.parameters() if parameter.is_floating_point()]
        if any(parameter.requires_grad for parameter in floats):
            return False
        return all(each.dtype == x.dtype for each in (self.lora_A, self.lora_B, *floats))

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        inputs = self.inputs(x)
        if self.dropout:
            inputs = F.dropout(inputs, self.dropout, self.training)
        # Scale the thin matrix, and add in the product: no extra pass over the wide output.
        thin = F.linear(inputs, self.lora_A) * self.scaling
        flat = result.reshape(-1, self.out_features)
        added = torch.addmm(flat.to(thin.dtype), thin.reshape(-1, self.rank), self.lora_B.t().to(thin.dtype))
        return added.view(result.shape).to(result.dtype)

    def delta(self) -> Tensor:
        return self.scaling * (self.lora_B.float() @ self.lora_A.float())

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


class _FusedLoRA(torch.autograd.Function):
    """base(x) + scaling * B A x. Output and input gradient are accumulated in place, which saves the separate passes
    with which autograd would add them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, base: Any, scaling: float) -> Tensor:
        """x (…, in), A (rank, in), B (out, rank) to (…, out)."""
        flat = x.reshape(-1, x.shape[-1])
        quantized = isinstance(base, QuantizedLinear)
        result = base.linear_no_grad(flat) if quantized else F.linear(flat, base.weight, base.bias)
        thin = F.linear(flat, first) * scaling
        result.addmm_(thin, second.t())
        ctx.save_for_backward(x, first, second, thin, None if quantized else base.weight)
        ctx.layer, ctx.scaling = base if quantized else None, scaling
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B."""
        x, first, second, thin, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        inner = (flat @ second) * ctx.scaling
        of_x = of_first = of_second = None
        if ctx.needs_input_grad[0]:
            of_x = flat @ weight if ctx.layer is None else ctx.layer.input_gradient(flat)
            of_x = of_x.addmm_(inner, first).view(x.shape)
        if ctx.needs_input_grad[1]:
            of_first = inner.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            of_second = (thin.t() @ flat).t()  # transposing the wide matrix would cost more than the product
        return of_x, of_first, of_second, None, None
