"""Training under a constraint on the weights: rounded in every forward pass (quantization-aware training), or sparse.

The layers keep their float weights, and the forward pass uses the constrained ones. For rounding, the gradient passes
straight through (Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877), so small updates add up
until a weight crosses to the next code. For a mask, the gradient of a removed weight is 0. With a LoRA over the layer,
the sum of its weight and the adapter's product is rounded (LoRA-QAT), so that merging and quantizing afterwards gives
exactly the layer that was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.adapters.lora import LoRALinear
from quatrain.compression.int8 import W8A8Linear, quantize_tokens
from quatrain.compression.integers import IntegerLinear
from quatrain.compression.methods import select_layers
from quatrain.core.errors import InputError
from quatrain.models.modules import replace_module
from quatrain.models.transformer.stack import Model

Constraint = Callable[[Tensor], Tensor]
"""The weight (out, in) that is used in place of the trained one."""


class ConstrainedLinear(nn.Linear):
    """y = c(W) x + bias, with the constraint c. The parameters and their names are those of the plain layer.

    `round_inputs`: whether x is rounded to int8, as the quantized layer will do.
    """

    def __init__(self, linear: nn.Linear, constraint: Constraint, *, round_inputs: bool = False):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.constraint, self.round_inputs = constraint, round_inputs
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.round_inputs:
            x = _RoundedTokens.apply(x)
        return F.linear(x, self.constraint(self.weight), self.bias)

    def plain(self) -> nn.Linear:
        """The plain layer with the trained weight, not constrained."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)


class Rounding:
    """The weight as it is after quantization by `layer`; the gradient is that of the weight itself."""

    def __init__(self, layer: IntegerLinear):
        self.layer = layer

    def __call__(self, weight: Tensor) -> Tensor:
        rounded: Tensor = _StraightThrough.apply(weight, self.layer)
        return rounded


class Mask:
    """The weight with zeros where a mask (out, in) is False; the gradient there is 0."""

    def __init__(self, mask: Tensor):
        self.mask = mask.to(torch.uint8)

    def __call__(self, weight: Tensor) -> Tensor:
        if self.mask.device != weight.device:
            self.mask = self.mask.to(weight.device)
        return weight * self.mask.to(weight.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, layer: IntegerLinear) -> Tensor:
        return layer.round_trip(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _RoundedTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        codes, scale = quantize_tokens(x)
        return (codes * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@contextmanager
def quantization_aware(model: Model, method: str, **options: Any) -> Iterator[list[str]]:
    """Rounds the weights of the model's linear layers, except the head, in every forward pass within the context.

    `method` and its options are those of `methods.quantize`, which gives exactly the trained layers afterwards (once
    adapters are merged). Yields the paths of the layers. Raises InputError for a method that is not of integers.
    """
    names, layer_of = _roundings(model, method, options)
    loras: list[LoRALinear] = []
    wrapped: list[str] = []
    for name in names:
        module = model.get_submodule(name)
        rounding = Rounding(layer_of(module))
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, LoRALinear):
            owner.rounding = rounding
            loras.append(owner)
        elif isinstance(module, nn.Linear):
            replace_module(model, name, ConstrainedLinear(module, rounding, round_inputs=method == W8A8Linear.method))
            wrapped.append(name)
    try:
        yield names
    finally:
        for lora in loras:
            lora.rounding = None
        _restore(model, wrapped)


def _roundings(
    model: Model, method: str, options: dict[str, Any]
) -> tuple[list[str], Callable[[nn.Module], IntegerLinear]]:
    """The paths of the layers that are rounded, and what gives the quantized layer of each, on no device."""
    quantized, names, options = select_layers(model, method, options)
    if not issubclass(quantized, IntegerLinear):
        raise InputError(f"quantize_aware: {method}; its codes are not integers: take int8, int4 or w8a8")

    def layer_of(linear: nn.Module) -> IntegerLinear:
        meta = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")  # type: ignore[arg-type]
        return quantized.empty_like(meta, **options)

    return names, layer_of


@contextmanager
def sparse(model: Model, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Keeps weights of linear layers at zero within the context, and leaves them zero after it.

    `masks` holds for the path of a layer which of its weights (out, in) are kept (True).
    """
    for name, mask in masks.items():
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear):
            replace_module(model, name, ConstrainedLinear(linear, Mask(mask)))
    try:
        yield
    finally:
        for name in masks:
            layer = model.get_submodule(name)
            if isinstance(layer, ConstrainedLinear):
                with torch.no_grad():
                    layer.weight.copy_(layer.constraint(layer.weight))
        _restore(model, masks)


def _restore(model: Model, names: Any) -> None:
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, ConstrainedLinear):
            replace_module(model, name, layer.plain())
