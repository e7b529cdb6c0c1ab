"""The base class of adapters over linear layers: a frozen layer with trained parameters, which can be merged back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.modules import is_linear


class AdapterLayer(nn.Module):
    """A frozen linear layer with trained parameters; it replaces the layer in the model.

    The base may be an `nn.Linear` or a quantized layer with `dequantize()`: anything that maps (…, in_features) to
    (…, out_features). The trained parameters are float32 whatever the base's dtype, and are registered on this module
    itself. A new adapter layer computes what its base does.
    """

    is_adapter: ClassVar[bool] = True
    method: ClassVar[str]
    merges: ClassVar[bool] = True
    """Whether the adapter can be merged into an `nn.Linear`."""

    def __init__(self, base: nn.Module):
        super().__init__()
        if not is_linear(base):
            raise InputError(f"{type(self).method}: {type(base).__name__} is not a linear layer.")
        self.base = base.requires_grad_(False)
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        return next(tensor for tensor in (*self.base.parameters(), *self.base.buffers())).device

    def add_parameter(self, name: str, *shape: int) -> None:
        """Registers a trained parameter of this shape, filled with zeros."""
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=self.device)))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of this layer by name."""
        return {name: parameter for name, parameter in self._parameters.items() if parameter is not None}

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Initializes the trained parameters so that the layer still computes what its base does."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor:
        """x in the dtype of the trained parameters; unchanged under autocast."""
        own = next(iter(self._parameters.values()))
        return x if own is None or torch.is_autocast_enabled(x.device.type) else x.to(own.dtype)

    def before(self, x: Tensor) -> Tensor:
        """The base's input in place of x (…, in_features)."""
        return x

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        """The output (…, out_features) in place of the base's `result`, in its dtype; x is the layer's own input."""
        return result

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features)."""
        return self.after(x, self.base(self.before(x)))

    def delta(self) -> Tensor:
        """What the adapter adds to the base's weight (out_features, in_features), in float32."""
        raise NotImplementedError

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        """Weight (out_features, in_features) of a linear layer that computes the same, and its bias (out_features,), or
        None for the base's bias.
        """
        return dequantized(self.base).weight.float() + self.delta(), None

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A linear layer that computes the same: a float base, changed in place, or the dequantized base.

        The result of a quantized base stays float, because quantizing it again would lose precision.
        """
        weight, bias = self.merged_weight()
        linear = dequantized(self.base)
        linear.weight.copy_(weight.to(linear.weight.dtype))
        if linear.bias is not None and bias is not None:
            linear.bias.copy_(bias.to(linear.bias.dtype))
        return linear.requires_grad_(True)


def dequantized(base: nn.Module) -> nn.Linear:
    """The base as an `nn.Linear`: itself, or a quantized one dequantized."""
    dequantize = getattr(base, "dequantize", None)
    linear: Any = dequantize() if dequantize is not None else base
    result: nn.Linear = linear
    return result


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """The adapter layers of a model with their paths."""
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, AdapterLayer))


@torch.no_grad()
def init_uniform(parameter: Tensor, generator: torch.Generator | None) -> None:
    """Uniform within ±1 / sqrt(columns), PyTorch's default for linear layers (He et al. 2015 with a = sqrt(5))."""
    bound = 1 / math.sqrt(parameter.shape[1])
    # Drawn on the CPU, so that every device gets the same values.
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
