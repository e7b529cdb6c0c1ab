"""What all quantized linear layers share: how they come to be, a product with gradients, and the way back.

A layer rounds a weight to a few bits, and works it out again where it is needed. Whatever reads x and not the weight,
such as an adapter over it, gets its gradients; the weight itself has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError


class QuantizedLinear(nn.Module):
    """y = x W^T + bias, for a W (out_features, in_features) of which the buffers hold the rounded numbers.

    A subclass implements `rounded`, `dequantized_weight` and `product`; `files` and `folder_entries` for model folders;
    and optionally `inference`, a faster forward without gradients.
    """

    method: ClassVar[str]
    """The word that names it in settings."""
    fixed_dtype: ClassVar[tuple[str, ...]] = ()
    """Buffers that keep the dtype of their file, whatever the model's."""
    from_float = False
    """Whether it is about to be filled from a folder of float weights."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Module, **options: Any) -> Self:
        """The layer nearest to a linear one. Raises InputError for weights that are not finite."""
        weight: Tensor = linear.weight.detach()  # type: ignore[operator]
        bias = getattr(linear, "bias", None)
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, weight.device, **options)
        for name, tensor in layer.rounded(weight).items():
            setattr(layer, name, tensor)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer.train(linear.training)

    @classmethod
    def options(cls, linears: list[nn.Linear], **wanted: Any) -> dict[str, Any]:
        """What all layers of one model have in common, beyond what is wanted, chosen by their shapes."""
        return wanted

    @classmethod
    def fits(cls, linear: nn.Linear, **options: Any) -> bool:
        """Whether a layer of this shape can be one."""
        return True

    def rounded(self, weight: Tensor) -> dict[str, Tensor]:
        """The buffers for a weight (out, in) of any float dtype. Raises InputError where it is not finite."""
        raise NotImplementedError

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W (out_features, in_features), worked out in float32 and rounded to `dtype`."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x W^T in x's dtype."""
        raise NotImplementedError

    def result(self, x: Tensor) -> Tensor:
        """x W^T and the bias in x's dtype, of which no backward pass knows."""
        found = self.product(x)
        return found if self.bias is None else found.add_(self.bias.to(found.dtype))

    def product_back(self, gradient: Tensor) -> Tensor:
        """What the gradient of x W^T is for x."""
        return gradient @ self.dequantized_weight(gradient.dtype)

    def inference(self, x: Tensor) -> Tensor:
        """x W^T where nobody asks for gradients: by the fastest way there is."""
        return self.product(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features), in x's dtype (autocast's where it is on)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        learning = x.requires_grad and torch.is_grad_enabled()
        y: Tensor = _Product.apply(x, self) if learning else self.inference(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self) -> nn.Linear:
        """A plain linear layer with the same weights, in float32."""
        weight = self.dequantized_weight()
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=weight.device)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None and linear.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def files(self, operation: Any) -> Any:
        """The operation of its tensors in a model folder, in place of the family's for a float weight.

        Raises InputError for layers that are no plain linear layer in the family's files.
        """
        raise NotImplementedError

    def folder_entries(self, model: Any) -> dict[str, Any]:
        """The `quantization_config` of a folder of the model."""
        raise NotImplementedError

    def file_names(self, operation: Any) -> Iterator[Any]:
        """How this layer's tensors stand in the folder that is read or written."""
        yield Quantizing(operation, self) if self.from_float else self.files(operation)

    def config_entries(self, model: Any) -> dict[str, Any]:
        """What a `config.json` says of the quantization of `model`."""
        return {"quantization_config": self.folder_entries(model)}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    """x W^T, whose backward pass works W out again: between the two nothing of its size is held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.product_back(gradient), None


@dataclass(frozen=True)
class Quantizing:
    """A float weight of the files that is quantized as it is read: no more than one is held."""

    operation: Any
    layer: QuantizedLinear

    @property
    def sources(self) -> list[str]:
        """Their names."""
        found: list[str] = self.operation.sources
        return found

    @property
    def targets(self) -> list[str]:
        """Our names."""
        ends = list(self.layer._buffers)
        return [f"{name.removesuffix('.weight')}.{end}" for name in self.operation.targets for end in ends]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that gives theirs by name."""
        for name, tensor in self.operation.read(get):
            for end, value in self.layer.rounded(tensor).items():
                yield f"{name.removesuffix('.weight')}.{end}", value


def check_finite(weight: Tensor) -> None:
    """Raises InputError for a weight that cannot be rounded."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError("A weight is not finite (NaN or infinite), so it cannot be quantized; use another model.")


STRIP, MANY = 1 << 20, 512
"""Weights of a strip of outputs, multiplied while the processor's cache has them; rows for which that saves nothing."""


def in_strips(x: Tensor, out_features: int, strip: Callable[[int, int], Tensor]) -> Tensor:
    """x W^T for x (…, in), some outputs after the other, of which `strip(start, stop)` are the rows of W.

    Starts are multiples of 64. Nothing of the size of W is written to memory or read from it, but for many rows, whose
    product takes so long that W is worked out whole.
    """
    flat = x.reshape(-1, x.shape[-1])
    step = max(64, STRIP // x.shape[-1] // 64 * 64)
    if x.device.type != "cpu" or len(flat) >= MANY or step >= out_features:
        return (flat @ strip(0, out_features).t()).view(*x.shape[:-1], out_features)
    found = x.new_empty(len(flat), out_features)
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        found[:, start:stop] = flat @ strip(start, stop).t()
    return found.view(*x.shape[:-1], out_features)


PART = 1 << 17
"""Weights that are worked out at a time: what lies between fits the processor's cache."""


def looked_up(packed: Tensor, pairs: Tensor, scales: Tensor, block: int, count: int, dtype: torch.dtype) -> Tensor:
    """Weights (count,) of bytes that stand for two each, times the scales (ceil(count / block),) of blocks of them.

    `pairs` (256, 2), in the dtype of the scales, are the two weights of each byte. The product is in that dtype, and
    rounded to `dtype`.
    """
    found = torch.empty(count, dtype=dtype, device=packed.device)
    # One word of a table is both weights of a byte: to fetch it takes half as long as to fetch a row of two.
    words = pairs.view(torch.int64 if pairs.dtype == torch.float32 else torch.int32).view(-1)
    flat, step = packed.reshape(-1), PART if packed.device.type == "cpu" else count + 1
    step += -step % (2 * block)
    for start in range(0, count, step):
        end = min(start + step, count)
        part = words.index_select(0, flat[start // 2 : (end + 1) // 2].int()).view(pairs.dtype)[: end - start]
        factors = scales[start // block : -(-end // block)]
        if (end - start) % block:
            part = part * factors.repeat_interleave(block)[: end - start]
        else:
            part = part.view(-1, block).mul_(factors[:, None]).view(-1)
        found[start:end] = part
    return found


def bucket(rows: int, most: int) -> int:
    """The next power of two: the number of rows that stands for this one when ways are measured."""
    return min(most, 1 << (rows - 1).bit_length())


def is_faster(other: Callable[[], Tensor], plain: Callable[[], Tensor], dtype: torch.dtype) -> bool:
    """Whether another way than the plain one is faster here, gives the same up to rounding, and does not fail."""
    try:
        with torch.inference_mode():
            expected, found = plain().float(), other().float()
            largest = float(expected.abs().max())
            if not float((expected - found).abs().max()) <= 4 * torch.finfo(dtype).eps * max(1.0, largest):
                return False
            limit = _seconds(plain)
            return _seconds(other, limit) < limit
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def _seconds(way: Callable[[], Tensor], limit: float = float("inf")) -> float:
    """The best of four turns; of two, where both take more than three times the limit: one may have been disturbed."""
    best = float("inf")
    for turn in range(4):
        start = time.perf_counter()
        device = way().device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        if turn and best > 3 * limit:
            break
    return best
