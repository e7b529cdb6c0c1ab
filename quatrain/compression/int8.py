"""Weight-only int8 linear layers: one scale for each output channel, symmetric, rounded to the nearest.

As the weight-only baseline in Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339) and Xiao et al. 2023 (SmoothQuant,
arXiv 2211.10438): weights take a quarter of float32's memory, activations stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.errors import InputError
from quatrain.models.stack import Model

LEVELS = 127
"""Steps on either side of zero."""
VECTOR = 64
"""Sizes that are a multiple of this suit PyTorch's int8 kernel on every processor."""
MOST_ROWS = 64
"""What is faster for this many rows is faster for more of them."""


class Int8Linear(nn.Module):
    """y = x (weight * scale)^T + bias, weight int8 (out_features, in_features), scale (out_features,).

    Two ways to compute it agree up to rounding; the faster one for the dtype, shape and number of rows is taken, by
    measuring each once in a process.
    """

    fixed_dtype = ("scale",)
    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Module) -> Int8Linear:
        """The int8 layer nearest to a linear one. Raises InputError for weights that are not finite."""
        weight: Tensor = linear.weight.detach().float()  # type: ignore[operator]
        if not bool(torch.isfinite(weight).all()):
            raise InputError("A weight is not finite (NaN or infinite), so it cannot be quantized; use another model.")
        bias = getattr(linear, "bias", None)
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, weight.device)
        largest = weight.abs().amax(dim=1)
        layer.scale = torch.where(largest > 0, largest / LEVELS, torch.ones_like(largest))
        layer.weight = (weight / layer.scale[:, None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features), in x's dtype (autocast's where it is on)."""
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        rows = x.numel() // self.in_features
        if x.requires_grad or not rows:
            y = dequantized(x.to(dtype), self.weight, self.scale)
        else:
            bucket = min(MOST_ROWS, 1 << (rows - 1).bit_length())
            path = fastest_path(dtype, x.device.type, self.in_features, self.out_features, bucket)
            y = path(x.to(dtype), self.weight, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self) -> nn.Linear:
        """A plain linear layer with the same weights, in float32."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.weight.device)
        with torch.no_grad():
            linear.weight.copy_(self.weight * self.scale.float()[:, None])
            if self.bias is not None and linear.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def file_names(self, operation: Any) -> Iterator[Any]:
        """How this layer's tensors stand in a model folder, in place of the family's operation for a float weight."""
        from quatrain.compression.files import packed

        yield packed(operation)

    def config_entries(self, model: Model) -> dict[str, Any]:
        """What a `config.json` says of the quantization of `model`."""
        from quatrain.compression.files import quantization_config

        return {"quantization_config": quantization_config(model)}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def dequantized(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product with the weight turned into x's dtype, the scale put on the result: everywhere, with gradients."""
    return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)


def packed_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product by PyTorch's int8 kernel, which reads the weight as it is; no gradients."""
    flat = x.reshape(-1, x.shape[-1])
    product = torch._weight_int8pack_mm(flat, weight, scale.to(x.dtype))
    return product.view(*x.shape[:-1], weight.shape[0])


Path = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def fastest_path(dtype: torch.dtype, device: str, in_features: int, out_features: int, rows: int) -> Path:
    """The faster of the ways to multiply `rows` rows, measured here; one that fails or disagrees is never taken."""
    x = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    weight = torch.randint(-LEVELS, LEVELS + 1, (out_features, in_features), dtype=torch.int8, device=device)
    scale = torch.full((out_features,), 0.01, device=device)
    # The kernel reads whole vectors, past the end of rows that are no multiple of one (up to a crash).
    if not hasattr(torch, "_weight_int8pack_mm") or in_features % VECTOR or out_features % VECTOR:
        return dequantized
    try:
        with torch.inference_mode():
            expected, found = dequantized(x, weight, scale).float(), packed_product(x, weight, scale).float()
            largest = float(expected.abs().max())
            if float((expected - found).abs().max()) > 4 * torch.finfo(dtype).eps * max(1.0, largest):
                return dequantized
            times = {path: _seconds(path, x, weight, scale) for path in (dequantized, packed_product)}
    except (RuntimeError, NotImplementedError):
        return dequantized
    return min(times, key=times.__getitem__)


def _seconds(path: Path, x: Tensor, weight: Tensor, scale: Tensor) -> float:
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        path(x, weight, scale)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - start)
    return best


def quantize(model: Model, skip: Sequence[str] = ("lm_head",)) -> list[str]:
    """Turns the model's linear layers into int8 ones, in place; returns their paths.

    `skip` names layers by the end of their path. The head stays: its rounding reaches every prediction undamped, and a
    tied head is the embedding. Raises InputError for unmerged adapters, and where nothing is left to quantize.
    """
    from quatrain.adaptation.layer import adapters, replace_module

    if adapted := [name for name, _ in adapters(model)]:
        raise InputError("Merge the adapters before quantizing the model:", adapted[:5])
    skipped = set(skip) | ({"lm_head"} if model.config.tie_word_embeddings else set())
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(name == end or name.endswith(f".{end}") for end in skipped)
    ]
    if not names:
        raise InputError("No linear layer is left to quantize: the model is quantized already, or `skip` names all.")
    for name in names:
        replace_module(model, name, Int8Linear.from_linear(model.get_submodule(name)))
    return names


def dequantize(model: Model) -> list[str]:
    """Turns int8 layers back into plain ones, in place; returns their paths."""
    from quatrain.adaptation.layer import replace_module

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    for name, module in found:
        replace_module(model, name, module.dequantize())
    return [name for name, _ in found]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and persistent buffers, tied ones once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensors.values())
