"""What all adapters over linear layers share: a frozen base, trained parameters of their own, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError


class Adapted(nn.Module):
    """A linear layer that is frozen, and what is learned beside it; takes its place in the model.

    The base may be plain or quantized: anything that maps (…, in_features) to (…, out_features), and gives a plain
    layer by `dequantize()` where it is none itself. Learned parameters are float32 whatever the base's dtype, and those
    registered on the module itself. A fresh one does what its base does.
    """

    method: ClassVar[str]
    merges: ClassVar[bool] = True
    """Whether a plain layer can do the same."""

    def __init__(self, base: nn.Module):
        super().__init__()
        if not is_linear(base):
            raise InputError(f"{type(self).method}: {type(base).__name__} is no linear layer, over which it goes.")
        self.base = base.requires_grad_(False)
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return next(tensor for tensor in (*self.base.parameters(), *self.base.buffers())).device

    def learn(self, name: str, *shape: int) -> None:
        """Registers a trained parameter, zeros of this shape."""
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=self.device)))

    def own(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {name: parameter for name, parameter in self._parameters.items() if parameter is not None}

    def draw(self, generator: torch.Generator | None) -> None:
        """Puts fresh values into the trained parameters, with which the layer still does what its base does."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor:
        """x as the trained parameters take it: in their precision, but under autocast."""
        own = next(iter(self._parameters.values()))
        return x if own is None or torch.is_autocast_enabled(x.device.type) else x.to(own.dtype)

    def before(self, x: Tensor) -> Tensor:
        """What the base reads in place of x (…, in_features)."""
        return x

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        """What comes out in place of the base's result (…, out_features), in its dtype; x is as the layer got it."""
        return result

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features)."""
        return self.after(x, self.base(self.before(x)))

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The weight (out_features, in_features) and bias (out_features,) of a plain layer that does the same."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A plain linear layer that does the same. A quantized base becomes a plain one: rounding it again would lose.

        A plain base is changed in place and is what comes back.
        """
        weight, bias = self.merged()
        linear = plain(self.base)
        linear.weight.copy_(weight.to(linear.weight.dtype))
        if linear.bias is not None and bias is not None:
            linear.bias.copy_(bias.to(linear.bias.dtype))
        return linear.requires_grad_(True)


def plain(base: nn.Module) -> nn.Linear:
    """The base as a plain linear layer: itself, or what a quantized one stands for."""
    dequantize = getattr(base, "dequantize", None)
    linear: Any = dequantize() if dequantize is not None else base
    found: nn.Linear = linear
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps (…, in_features) to (…, out_features) and is no adapter itself."""
    sizes = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sizes and not isinstance(module, Adapted)


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The adapted layers of a model by path."""
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, Adapted))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module at a path of the model, in the mode (training or not) of the model."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module.train(model.training))


@torch.no_grad()
def draw_uniform(parameter: Tensor, generator: torch.Generator | None) -> None:
    """Uniform within 1 / sqrt(columns), as linear layers are drawn (He et al. 2015 with a = sqrt(5))."""
    bound = 1 / math.sqrt(parameter.shape[1])
    # On the CPU, so that every device gets the same numbers.
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
