"""NF4 linear layers: 4-bit weights at the quantiles of a normal distribution, one scale per block of 64.

Dettmers et al. 2023 (QLoRA, arXiv 2305.14314). With double quantization the scales are 8-bit too, in the dynamic data
type of Dettmers 2015 (arXiv 1511.04561), with one scale per 256 of them and one offset: 4.13 bits a weight. The values
equal bitsandbytes', bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.compression import blockwise, nf4_kernels
from quatrain.compression.blockwise import dynamic_code
from quatrain.compression.layer import QuantizedLinear, check_finite, dequantize_by_lookup, matmul_in_strips
from quatrain.compression.packing import float_layers, plain_paths
from quatrain.core.errors import InputError
from quatrain.core.reading import decode, parse_json
from quatrain.core.wording import format_value
from quatrain.models.transformer.stack import Model

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale; scales that share a scale of their own."""

CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values (QLoRA, appendix E)."""

METHOD = "bitsandbytes"
MAX_STATE_BYTES = 65_536
"""Limit on the JSON text that describes one layer's quantization; bitsandbytes writes about 200 bytes."""

REQUIRED_ENTRIES = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
"""Entries of a `quantization_config` of bitsandbytes that select NF4."""


class NF4Linear(QuantizedLinear):
    """y = x W^T + bias, with W (out_features, in_features) dequantized for each product.

    Buffers: `weight` (ceil(N / 2), 1) uint8, two of the N weights a byte, the first in the upper half; `absmax`, one
    scale per 64 weights: float32, or, if `double`, uint8 with their scales `nested` and `offset`.
    """

    method: ClassVar[str] = "nf4"
    fixed_dtype: ClassVar[tuple[str, ...]] = ("absmax", "nested", "offset")
    weight: Tensor
    absmax: Tensor
    nested: Tensor
    offset: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, device: Any = None, *, double: bool = True
    ):
        super().__init__(in_features, out_features, bias, device)
        self.double_quant = double
        count = in_features * out_features
        blocks = math.ceil(count / BLOCK)
        self.register_buffer("weight", torch.zeros(math.ceil(count / 2), 1, dtype=torch.uint8, device=device))
        scale_dtype = torch.uint8 if double else torch.float32
        self.register_buffer("absmax", torch.zeros(blocks, dtype=scale_dtype, device=device))
        if double:
            self.register_buffer("nested", torch.zeros(math.ceil(blocks / NESTED_BLOCK), device=device))
            self.register_buffer("offset", torch.zeros((), device=device))

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        return quantize(weight, double=self.double_quant)

    def scales(self) -> Tensor:
        """The scale of each block, float32."""
        return dequantize_scales(self.absmax, self.nested, self.offset) if self.double_quant else self.absmax

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize(self.weight, self.scales(), (self.out_features, self.in_features), dtype)

    def matmul(self, x: Tensor) -> Tensor:
        scales, width = self.scales(), self.in_features

        def strip(start: int, stop: int) -> Tensor:
            first, last = start * width, stop * width
            packed = self.weight[first // 2 : math.ceil(last / 2)]
            strip_scales = scales[first // BLOCK : math.ceil(last / BLOCK)]
            return dequantize(packed, strip_scales, (stop - start, width), x.dtype)

        return matmul_in_strips(x, self.out_features, strip)

    def folder_operation(self, operation: Any) -> Any:
        theirs, ours = plain_paths(operation, METHOD)
        return NF4Operation(theirs, ours, (self.out_features, self.in_features), self.double_quant)

    def quantization_config(self, model: Model) -> dict[str, Any]:
        return {
            "quant_method": METHOD, **REQUIRED_ENTRIES, "load_in_8bit": False,
            "bnb_4bit_use_double_quant": self.double_quant, "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": float_layers(model),
        }  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, double={self.double_quant}"


def quantize(weight: Tensor, *, double: bool = True) -> dict[str, Tensor]:
    """The buffers of a layer for a weight (out, in) of any float dtype. Raises InputError if it is not finite."""
    values = weight.reshape(-1).float()
    check_finite(values)
    indices, absmax = blockwise.quantize(values, BLOCK, torch.tensor(CODE))
    indices = F.pad(indices, (0, len(indices) % 2), value=len(CODE) // 2 - 1)
    buffers = {"weight": ((indices[::2] << 4) | indices[1::2])[:, None], "absmax": absmax}
    if double:
        offset = absmax.mean()
        buffers["absmax"], buffers["nested"] = blockwise.quantize(absmax - offset, NESTED_BLOCK, dynamic_code())
        buffers["offset"] = offset
    return buffers


def dequantize_scales(absmax: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """The scales of blocks (B,) float32, from 8-bit scales, the scales of these, and the offset."""
    return blockwise.dequantize(absmax, nested, NESTED_BLOCK, dynamic_code()) + offset


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two weights of each byte (256, 2)."""
    code = torch.tensor(CODE)
    return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1).to(device)


def dequantize(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Weights of a shape, computed in float32 and rounded to `dtype`, by bitsandbytes' kernel where it is faster.

    Both implementations give the same bits.
    """
    usable = not torch.compiler.is_compiling() and nf4_kernels.supports(shape, BLOCK)
    if usable and nf4_kernels.kernel_is_faster(packed.device, dtype, BLOCK, dequantize_plain):
        return nf4_kernels.dequantize(packed, scales, BLOCK, shape, dtype)
    return dequantize_plain(packed, scales, shape, dtype)


def dequantize_plain(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`dequantize` with PyTorch alone."""
    return dequantize_by_lookup(packed, _pairs(packed.device), scales, BLOCK, math.prod(shape), dtype).view(*shape)


@dataclass(frozen=True)
class NF4Operation:
    """The weight operation of one NF4 layer: `weight` and the tensors that bitsandbytes stores beside it."""

    theirs: str
    ours: str
    shape: tuple[int, int]
    double: bool

    @property
    def sources(self) -> list[str]:
        """Names in the files."""
        nested = ["nested_absmax", "nested_quant_map"] if self.double else []
        ends = ["absmax", "quant_map", *nested, "quant_state.bitsandbytes__nf4"]
        return [f"{self.theirs}.weight", *(f"{self.theirs}.weight.{end}" for end in ends)]

    @property
    def targets(self) -> list[str]:
        """Names in the model."""
        return [f"{self.ours}.{name}" for name in ("weight", "absmax", *(("nested", "offset") if self.double else ()))]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the model's tensors; `get` returns a tensor of the files by name.

        Raises InputError for another code or block size.
        """
        stored = get(self.sources[-1])
        if stored.dtype != torch.uint8 or stored.numel() > MAX_STATE_BYTES:
            raise InputError(f"{self.sources[-1]}: must be at most {MAX_STATE_BYTES:,} bytes of JSON")
        state = parse_json(decode(bytes(stored.flatten().tolist()), self.sources[-1]), self.sources[-1])
        offset = state.get("nested_offset")
        if self.double and (isinstance(offset, bool) or not isinstance(offset, int | float)):
            raise InputError(f"{self.sources[-1]}: nested_offset: {format_value(offset)}; must be a number")
        expected = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(self.shape)}
        expected |= {"nested_blocksize": NESTED_BLOCK} if self.double else {}
        if wrong := {key: state.get(key) for key, value in expected.items() if state.get(key) != value}:
            raise InputError(f"{self.theirs}: quantized with {wrong}; Quatrain reads {expected}")
        yield f"{self.ours}.weight", get(f"{self.theirs}.weight").view(torch.uint8).reshape(-1, 1)
        yield f"{self.ours}.absmax", get(f"{self.theirs}.weight.absmax")
        if self.double:
            yield f"{self.ours}.nested", get(f"{self.theirs}.weight.nested_absmax")
            yield f"{self.ours}.offset", torch.tensor(float(state["nested_offset"]))

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the files; `get` returns a tensor of the model by name."""
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(self.shape)}
        values = {"": get(f"{self.ours}.weight"), "absmax": get(f"{self.ours}.absmax"),
                  "quant_map": torch.tensor(CODE)}  # fmt: skip
        if self.double:
            values |= {"nested_absmax": get(f"{self.ours}.nested"), "nested_quant_map": dynamic_code()}
            offset = float(get(f"{self.ours}.offset"))
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        values["quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        yield from ((f"{self.theirs}.weight{'.' if end else ''}{end}", value) for end, value in values.items())


def config_problems(config: dict[str, Any]) -> list[str]:
    """The entries of a `quantization_config` of bitsandbytes that Quatrain does not read."""
    problems = [
        f"{key}: {format_value(config.get(key))}; Quatrain reads {format_value(value)}"
        for key, value in REQUIRED_ENTRIES.items()
        if config.get(key) != value
    ]
    double = config.get("bnb_4bit_use_double_quant")
    if not isinstance(double, bool | None):
        problems.append(f"bnb_4bit_use_double_quant: {format_value(double)}; must be true or false")
    return problems
