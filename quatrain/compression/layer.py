"""The base class of quantized linear layers, and what their implementations share.

A layer stores its weight in a few bits and dequantizes it when a product needs it. Gradients flow to the input, so
that adapters can be trained over the layer; the weight itself has no gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.kernels.stored import StoredWeight


class QuantizedLinear(nn.Module):
    """y = x W^T + bias, with W (out_features, in_features) quantized in the layer's buffers.

    A subclass implements `quantize_weight`, `dequantized_weight` and `matmul`; `folder_operation` and
    `quantization_config` for model folders; and optionally `inference`, a faster product without gradients.
    """

    method: ClassVar[str]
    """The method's name in settings."""
    fixed_dtype: ClassVar[tuple[str, ...]] = ()
    """Buffers that keep the dtype of their file, whatever the model's dtype."""
    quantize_on_load = False
    """Whether the layer is about to be filled from a folder of float weights."""
    stored_format: ClassVar[str | None] = None
    """How native code reads the weight, if it does."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def empty_like(cls, linear: nn.Module, **options: Any) -> Self:
        """A layer of a linear layer's shape and device, not filled yet."""
        weight: Any = linear.weight
        return cls(
            weight.shape[1], weight.shape[0], getattr(linear, "bias", None) is not None, weight.device, **options
        )

    @classmethod
    def from_linear(
        cls, linear: nn.Module, *, encode: Callable[[Self, Tensor], dict[str, Tensor]] | None = None, **options: Any
    ) -> Self:
        """Quantizes a linear layer. Raises InputError if its weights are not finite.

        `encode(layer, weight)` returns the buffers; by default `quantize_weight`.
        """
        layer = cls.empty_like(linear, **options)
        weight: Any = linear.weight
        buffers = (cls.quantize_weight if encode is None else encode)(layer, weight.detach())
        for name, tensor in buffers.items():
            setattr(layer, name, tensor)
        if layer.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone())  # type: ignore[operator]
        return layer.train(linear.training)

    @classmethod
    def shared_options(cls, linears: list[nn.Linear], **options: Any) -> dict[str, Any]:
        """The options of all layers of one model; those not given are chosen by the layers' shapes."""
        return options

    @classmethod
    def supports(cls, linear: nn.Linear, **options: Any) -> bool:
        """Whether the method can quantize a layer of this shape."""
        return True

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        """The buffers for a weight (out, in) of any float dtype. Raises InputError if it is not finite."""
        raise NotImplementedError

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W (out_features, in_features), computed in float32 and rounded to `dtype`."""
        raise NotImplementedError

    def matmul(self, x: Tensor) -> Tensor:
        """x W^T in x's dtype."""
        raise NotImplementedError

    def stored_weight(self) -> StoredWeight:
        """The weight as native code reads it (`quatrain.models.kernels.decode`), of methods with a `stored_format`."""
        raise NotImplementedError

    def linear_no_grad(self, x: Tensor) -> Tensor:
        """x W^T + bias in x's dtype, for use inside an autograd function."""
        y = self.matmul(x)
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of x, from the gradient of x W^T."""
        return gradient @ self.dequantized_weight(gradient.dtype)

    def inference(self, x: Tensor) -> Tensor:
        """x W^T without gradients, by the fastest implementation."""
        return self.matmul(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features), in x's dtype or in autocast's where that is enabled."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        needs_gradient = x.requires_grad and torch.is_grad_enabled()
        y: Tensor = _MatmulWithGradient.apply(x, self) if needs_gradient else self.inference(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self) -> nn.Linear:
        """A float32 linear layer with the same weights."""
        weight = self.dequantized_weight()
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=weight.device)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None and linear.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def folder_operation(self, operation: Any) -> Any:
        """The weight operation of the quantized layer, which replaces the family's operation for the float weight.

        Raises InputError for a layer that the family's files do not store as one plain linear layer.
        """
        raise NotImplementedError

    def quantization_config(self, model: Any) -> dict[str, Any]:
        """The `quantization_config` of a folder of the model."""
        raise NotImplementedError

    def weight_operations(self, operation: Any) -> Iterator[Any]:
        """Yields the operation that reads or writes this layer's tensors in a model folder."""
        yield QuantizeOnLoad(operation, self) if self.quantize_on_load else self.folder_operation(operation)

    def config_entries(self, model: Any) -> dict[str, Any]:
        """The entries that the layer adds to the `config.json` of `model`."""
        return {"quantization_config": self.quantization_config(model)}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _MatmulWithGradient(torch.autograd.Function):
    """x W^T; the backward pass dequantizes W again, so that no tensor of W's size is saved between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.matmul(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.input_gradient(gradient), None


@dataclass(frozen=True)
class QuantizeOnLoad:
    """A weight operation that quantizes a float weight as it is read: one float weight is in memory at a time."""

    operation: Any
    layer: QuantizedLinear

    @property
    def sources(self) -> list[str]:
        """Names in the files."""
        names: list[str] = self.operation.sources
        return names

    @property
    def targets(self) -> list[str]:
        """Names in the model."""
        ends = list(self.layer._buffers)
        return [f"{name.removesuffix('.weight')}.{end}" for name in self.operation.targets for end in ends]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's tensors; `get` returns a tensor of the files by name."""
        for name, tensor in self.operation.read(get):
            for end, value in self.layer.quantize_weight(tensor).items():
                yield f"{name.removesuffix('.weight')}.{end}", value


def check_finite(weight: Tensor) -> None:
    """Raises InputError for a weight with NaN or inf."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError("A weight is not finite (NaN or infinite), so it cannot be quantized; use another model.")


STRIP_WEIGHTS = 1 << 20
"""Weights of one strip of output rows: its product runs while the strip is in the CPU's cache."""
WHOLE_ROWS = 512
"""From so many rows of x on, the product dominates, and W is dequantized whole."""


def matmul_in_strips(x: Tensor, out_features: int, strip: Callable[[int, int], Tensor]) -> Tensor:
    """x W^T for x (…, in), in strips of outputs; `strip(start, stop)` returns those rows of W.

    Starts are multiples of 64. On a CPU with few rows of x, no tensor of the size of W is written or read.
    """
    flat = x.reshape(-1, x.shape[-1])
    step = max(64, STRIP_WEIGHTS // x.shape[-1] // 64 * 64)
    if x.device.type != "cpu" or len(flat) >= WHOLE_ROWS or step >= out_features:
        return (flat @ strip(0, out_features).t()).view(*x.shape[:-1], out_features)
    y = x.new_empty(len(flat), out_features)
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        y[:, start:stop] = flat @ strip(start, stop).t()
    return y.view(*x.shape[:-1], out_features)


LOOKUP_CHUNK = 1 << 17
"""Weights that are dequantized at a time: the intermediate tensors fit the CPU's cache."""


def dequantize_by_lookup(
    packed: Tensor, pairs: Tensor, scales: Tensor, block: int, count: int, dtype: torch.dtype
) -> Tensor:
    """Weights (count,) from bytes of two 4-bit weights each, times the scales (ceil(count / block),) of their blocks.

    `pairs` (256, 2), in the dtype of the scales, holds the two weights of each byte. The product is computed in that
    dtype and rounded to `dtype`.
    """
    weights = torch.empty(count, dtype=dtype, device=packed.device)
    # One word of the table is both weights of a byte: fetching it takes half the time of fetching a row of two.
    words = pairs.view(torch.int64 if pairs.dtype == torch.float32 else torch.int32).view(-1)
    flat, step = packed.reshape(-1), LOOKUP_CHUNK if packed.device.type == "cpu" else count + 1
    step += -step % (2 * block)
    for start in range(0, count, step):
        end = min(start + step, count)
        chunk = words.index_select(0, flat[start // 2 : (end + 1) // 2].int()).view(pairs.dtype)[: end - start]
        factors = scales[start // block : -(-end // block)]
        if (end - start) % block:
            chunk = chunk * factors.repeat_interleave(block)[: end - start]
        else:
            chunk = chunk.view(-1, block).mul_(factors[:, None]).view(-1)
        weights[start:end] = chunk
    return weights


def row_bucket(rows: int, largest: int) -> int:
    """The next power of two, at most `largest`: implementations are measured once for each bucket of rows."""
    return min(largest, 1 << (rows - 1).bit_length())


def is_faster(candidate: Callable[[], Tensor], reference: Callable[[], Tensor], dtype: torch.dtype) -> bool:
    """Whether a candidate runs on this machine, agrees with the reference up to rounding, and is faster."""
    try:
        with torch.inference_mode():
            expected, result = reference().float(), candidate().float()
            largest = float(expected.abs().max())
            if not float((expected - result).abs().max()) <= 4 * torch.finfo(dtype).eps * max(1.0, largest):
                return False
            limit = _best_time(reference)
            return _best_time(candidate, limit) < limit
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def _best_time(run: Callable[[], Tensor], limit: float = float("inf")) -> float:
    """The shortest of four runs, in seconds; of two, if both take more than three times the limit."""
    best = float("inf")
    for repeat in range(4):
        start = time.perf_counter()
        device = run().device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        if repeat and best > 3 * limit:
            break
    return best
