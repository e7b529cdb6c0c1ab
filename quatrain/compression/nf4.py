"""NF4 linear layers: four bits a weight, at the quantiles of a normal distribution, a scale for each block of 64.

Dettmers et al. 2023 (QLoRA, arXiv 2305.14314). With double quantization the scales take eight bits each, in the dynamic
format of Dettmers 2015 (arXiv 1511.04561), with a scale of their own for each 256 and one offset: 4.13 bits a weight.
Values are bitsandbytes', bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.compression import blockwise
from quatrain.compression.blockwise import dynamic_code
from quatrain.errors import InputError
from quatrain.models.stack import Model

BLOCK, OUTER = 64, 256
"""Weights that share a scale, and scales that share one."""

CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values (QLoRA, appendix E)."""

PART = 1 << 18
"""Weights that are worked out at a time: what lies between fits the processor's cache."""


class NF4Linear(nn.Module):
    """y = x W^T + bias, for a W (out_features, in_features) that is worked out when it is needed, and not kept.

    Buffers: `weight` (ceil(N / 2), 1) uint8, two of the N weights a byte, the first in its upper half; `absmax`, a
    scale for each 64 weights, float32, or uint8 with `nested`, their scales, and `offset`, where it is `double`.
    """

    fixed_dtype = ("absmax", "nested", "offset")
    weight: Tensor
    absmax: Tensor
    nested: Tensor
    offset: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, device: Any = None, *, double: bool = True
    ):
        super().__init__()
        self.in_features, self.out_features, self.nests = in_features, out_features, double
        self.from_float = False
        count = in_features * out_features
        blocks = math.ceil(count / BLOCK)
        self.register_buffer("weight", torch.zeros(math.ceil(count / 2), 1, dtype=torch.uint8, device=device))
        kind = torch.uint8 if double else torch.float32
        self.register_buffer("absmax", torch.zeros(blocks, dtype=kind, device=device))
        if double:
            self.register_buffer("nested", torch.zeros(math.ceil(blocks / OUTER), device=device))
            self.register_buffer("offset", torch.zeros((), device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Module, *, double: bool = True) -> NF4Linear:
        """The layer nearest to a linear one. Raises InputError for weights that are not finite."""
        weight: Tensor = linear.weight.detach()  # type: ignore[operator]
        bias = getattr(linear, "bias", None)
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, weight.device, double=double)
        for name, tensor in quantized(weight, double=double).items():
            setattr(layer, name, tensor)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer.train(linear.training)

    def scales(self) -> Tensor:
        """The scale of each block, float32."""
        if not self.nests:
            return self.absmax
        return scales_of(self.absmax, self.nested, self.offset)

    def plain_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W (out_features, in_features)."""
        return dequantized(self.weight, self.scales(), (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features), in x's dtype (autocast's where it is on)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self) -> nn.Linear:
        """A plain linear layer with the same weights, in float32."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.weight.device)
        with torch.no_grad():
            linear.weight.copy_(self.plain_weight())
            if self.bias is not None and linear.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def file_names(self, operation: Any) -> Iterator[Any]:
        """How this layer's tensors stand in a model folder, in place of the family's operation for a float weight."""
        from quatrain.compression.nf4_files import packed

        yield packed(operation, self)

    def config_entries(self, model: Model) -> dict[str, Any]:
        """What a `config.json` says of the quantization of `model`."""
        from quatrain.compression.nf4_files import quantization_config

        return {"quantization_config": quantization_config(model)}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, double={self.nests}"


class _Product(torch.autograd.Function):
    """x W^T, whose backward pass works W out again: between the two nothing of its size is held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.plain_weight(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.plain_weight(gradient.dtype), None


def quantized(weight: Tensor, *, double: bool = True) -> dict[str, Tensor]:
    """The buffers of a layer for a weight (out, in) of any float dtype. Raises InputError where it is not finite."""
    values = weight.reshape(-1).float()
    if not bool(torch.isfinite(values).all()):
        raise InputError("A weight is not finite (NaN or infinite), so it cannot be quantized; use another model.")
    numbers, absmax = blockwise.quantize(values, BLOCK, torch.tensor(CODE))
    numbers = F.pad(numbers, (0, len(numbers) % 2), value=len(CODE) // 2 - 1)
    found = {"weight": ((numbers[::2] << 4) | numbers[1::2])[:, None], "absmax": absmax}
    if double:
        offset = absmax.mean()
        found["absmax"], found["nested"] = blockwise.quantize(absmax - offset, OUTER, dynamic_code())
        found["offset"] = offset
    return found


def scales_of(absmax: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """The scales of blocks (B,) float32, out of their eight-bit numbers, the scales of those, and the offset."""
    return blockwise.dequantize(absmax, nested, OUTER, dynamic_code()) + offset


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two weights that each byte stands for (256, 2)."""
    code = torch.tensor(CODE)
    return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1).to(device)


def dequantized(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weights of this shape, worked out in float32 and rounded to `dtype`."""
    count = math.prod(shape)
    found = torch.empty(count, dtype=dtype, device=packed.device)
    table, bytes_, step = _pairs(packed.device), packed.view(-1), PART if packed.device.type == "cpu" else count + 1
    step += -step % (2 * BLOCK)
    for start in range(0, count, step):
        end = min(start + step, count)
        part = table.index_select(0, bytes_[start // 2 : (end + 1) // 2].int()).view(-1)[: end - start]
        factors = scales[start // BLOCK : math.ceil(end / BLOCK)]
        if (end - start) % BLOCK:
            part = part * factors.repeat_interleave(BLOCK)[: end - start]
        else:
            part = part.view(-1, BLOCK).mul_(factors[:, None]).view(-1)
        found[start:end] = part
    return found.view(*shape)


def prepare(model: Model, config: dict[str, Any]) -> None:
    """Puts NF4 layers into a model about to be filled, which quantize what they read: the weights of a folder of floats
    go straight into them, one after the other. Layers that the folder has quantized already are as they are there.
    """
    from quatrain.adaptation.layer import replace_module
    from quatrain.adaptation.targets import is_of_head
    from quatrain.compression import files

    files.prepare(model, config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not is_of_head(name):
            layer = NF4Linear(module.in_features, module.out_features, module.bias is not None, module.weight.device)
            layer.from_float = True
            replace_module(model, name, layer)


def filled(model: Model) -> Model:
    """The model, its layers ready to be written, after `prepare` and the reading."""
    for module in model.modules():
        if isinstance(module, NF4Linear):
            module.from_float = False
    return model


def dequantize(model: Model) -> list[str]:
    """Turns NF4 layers back into plain ones, in place; returns their paths."""
    from quatrain.adaptation.layer import replace_module

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, NF4Linear)]
    for name, module in found:
        replace_module(model, name, module.dequantize())
    return [name for name, _ in found]


def quantize(model: Model, *, double: bool = True) -> list[str]:
    """Turns the model's linear layers, but the head, into NF4 ones, in place; returns their paths.

    Raises InputError for unmerged adapters, and where nothing is left to quantize.
    """
    from quatrain.adaptation.layer import adapters, replace_module
    from quatrain.adaptation.targets import is_of_head

    if adapted := [name for name, _ in adapters(model)]:
        raise InputError("Merge the adapters before quantizing the model:", adapted[:5])
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not is_of_head(name)
    ]
    if not names:
        raise InputError("No linear layer is left to quantize: the model is quantized already.")
    for name in names:
        replace_module(model, name, NF4Linear.from_linear(model.get_submodule(name), double=double))
    return names
