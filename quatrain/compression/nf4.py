"""NF4 linear layers: four bits a weight, at the quantiles of a normal distribution, a scale for each block of 64.

Dettmers et al. 2023 (QLoRA, arXiv 2305.14314). With double quantization the scales take eight bits each, in the dynamic
format of Dettmers 2015 (arXiv 1511.04561), with a scale of their own for each 256 and one offset: 4.13 bits a weight.
Values are bitsandbytes', bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.compression import blockwise, nf4_kernels
from quatrain.compression.blockwise import dynamic_code
from quatrain.compression.layer import QuantizedLinear, check_finite, in_strips, looked_up
from quatrain.compression.packing import file_names
from quatrain.core.errors import InputError
from quatrain.core.reading import decode, parse_json, shown
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.stack import Model

BLOCK, OUTER = 64, 256
"""Weights that share a scale, and scales that share one."""

CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values (QLoRA, appendix E)."""

METHOD = "bitsandbytes"
MAX_STATE_BYTES = 65_536
"""Of the text that describes one layer's quantization; bitsandbytes writes about 200."""

WANTED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


class NF4Linear(QuantizedLinear):
    """y = x W^T + bias, for a W (out_features, in_features) that is worked out when it is needed, and not kept.

    Buffers: `weight` (ceil(N / 2), 1) uint8, two of the N weights a byte, the first in its upper half; `absmax`, a
    scale for each 64 weights, float32, or uint8 with `nested`, their scales, and `offset`, where it is `double`.
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
        self.nests = double
        count = in_features * out_features
        blocks = math.ceil(count / BLOCK)
        self.register_buffer("weight", torch.zeros(math.ceil(count / 2), 1, dtype=torch.uint8, device=device))
        kind = torch.uint8 if double else torch.float32
        self.register_buffer("absmax", torch.zeros(blocks, dtype=kind, device=device))
        if double:
            self.register_buffer("nested", torch.zeros(math.ceil(blocks / OUTER), device=device))
            self.register_buffer("offset", torch.zeros((), device=device))

    def rounded(self, weight: Tensor) -> dict[str, Tensor]:
        return quantized(weight, double=self.nests)

    def scales(self) -> Tensor:
        """The scale of each block, float32."""
        if not self.nests:
            return self.absmax
        return scales_of(self.absmax, self.nested, self.offset)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantized(self.weight, self.scales(), (self.out_features, self.in_features), dtype)

    def product(self, x: Tensor) -> Tensor:
        scales, wide = self.scales(), self.in_features

        def strip(start: int, stop: int) -> Tensor:
            first, last = start * wide, stop * wide
            numbers = self.weight[first // 2 : math.ceil(last / 2)]
            return dequantized(numbers, scales[first // BLOCK : math.ceil(last / BLOCK)], (stop - start, wide), x.dtype)

        return in_strips(x, self.out_features, strip)

    def files(self, operation: Any) -> Any:
        return _packed(operation, self)

    def folder_entries(self, model: Any) -> dict[str, Any]:
        return _quantization_config(model)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, double={self.nests}"


def quantized(weight: Tensor, *, double: bool = True) -> dict[str, Tensor]:
    """The buffers of a layer for a weight (out, in) of any float dtype. Raises InputError where it is not finite."""
    values = weight.reshape(-1).float()
    check_finite(values)
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
    """The weights of this shape, worked out in float32 and rounded to `dtype`: by the faster of two ways, which agree
    to the bit.
    """
    fits = not torch.compiler.is_compiling() and nf4_kernels.takes(shape, BLOCK)
    if fits and nf4_kernels.kernel_is_faster(packed.device, dtype, BLOCK, looked_up_weights):
        return nf4_kernels.worked_out(packed, scales, BLOCK, shape, dtype)
    return looked_up_weights(packed, scales, shape, dtype)


def looked_up_weights(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The same by PyTorch alone."""
    return looked_up(packed, _pairs(packed.device), scales, BLOCK, math.prod(shape), dtype).view(*shape)


@dataclass(frozen=True)
class Packed4:
    """One NF4 layer: `weight` and what bitsandbytes puts beside it."""

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
        about = parse_json(decode(bytes(stored.flatten().tolist()), self.sources[-1]), self.sources[-1])
        offset = about.get("nested_offset")
        if self.double and (isinstance(offset, bool) or not isinstance(offset, int | float)):
            raise InputError(f"{self.sources[-1]}: nested_offset: {shown(offset)}; must be a number")
        expected = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(self.shape)}
        expected |= {"nested_blocksize": OUTER} if self.double else {}
        if wrong := {key: about.get(key) for key, value in expected.items() if about.get(key) != value}:
            raise InputError(f"{self.theirs}: quantized with {wrong}; Quatrain reads {expected}")
        yield f"{self.ours}.weight", get(f"{self.theirs}.weight").view(torch.uint8).reshape(-1, 1)
        yield f"{self.ours}.absmax", get(f"{self.theirs}.weight.absmax")
        if self.double:
            yield f"{self.ours}.nested", get(f"{self.theirs}.weight.nested_absmax")
            yield f"{self.ours}.offset", torch.tensor(float(about["nested_offset"]))

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the files; `get` returns a tensor of the model by name."""
        about: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(self.shape)
        }  # fmt: skip
        values = {"": get(f"{self.ours}.weight"), "absmax": get(f"{self.ours}.absmax"),
                  "quant_map": torch.tensor(CODE)}  # fmt: skip
        if self.double:
            values |= {"nested_absmax": get(f"{self.ours}.nested"), "nested_quant_map": dynamic_code()}
            offset = float(get(f"{self.ours}.offset"))
            about |= {"nested_blocksize": OUTER, "nested_dtype": "float32", "nested_offset": offset}
        values["quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
        yield from ((f"{self.theirs}.weight{'.' if end else ''}{end}", value) for end, value in values.items())


def _packed(operation: Any, layer: NF4Linear) -> Any:
    """The operation of an NF4 layer, in place of the family's for the float one.

    Raises InputError for layers that are no plain linear layer in the family's files, where they are to be written.
    """
    if not isinstance(operation, Rename) or operation.transpose:
        raise InputError(
            f"{operation.theirs}: this family fuses or transposes it in its files, and the format of NF4 model folders "
            "has no place for that. Quantize a model of another family, such as llama, or keep it in memory alone."
        )
    theirs, ours = operation.theirs.removesuffix(".weight"), operation.ours.removesuffix(".weight")
    return Packed4(theirs, ours, (layer.out_features, layer.in_features), layer.nests)


def _quantization_config(model: Model) -> dict[str, Any]:
    """The `quantization_config` of a model's config.json, as transformers writes it for bitsandbytes."""
    names = file_names(model)
    layers = [module for module in model.modules() if isinstance(module, NF4Linear)]
    kept = [names.get(name, name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": METHOD, **WANTED, "load_in_8bit": False, "bnb_4bit_use_double_quant": layers[0].nests,
        "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": sorted(kept),
    }  # fmt: skip


def problems_of(wanted: dict[str, Any]) -> list[str]:
    """What of a `quantization_config` of bitsandbytes is not read here."""
    return [
        f"{key}: {shown(wanted.get(key))}; Quatrain reads {value!r}"
        for key, value in WANTED.items()
        if wanted.get(key) != value
    ] + [
        f"{key}: {shown(wanted[key])}; must be true or false"
        for key in ("bnb_4bit_use_double_quant",)
        if not isinstance(wanted.get(key), bool | None)
    ]
