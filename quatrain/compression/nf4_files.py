"""How NF4 layers stand in a model folder: as bitsandbytes writes them, which transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quatrain.compression import nf4
from quatrain.compression.blockwise import dynamic_code
from quatrain.core.errors import InputError
from quatrain.core.reading import decode, parse_json, shown
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.compression.nf4 import NF4Linear

METHOD = "bitsandbytes"
MAX_STATE_BYTES = 65_536
"""Of the text that describes one layer's quantization; bitsandbytes writes about 200."""

WANTED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@dataclass(frozen=True)
class Packed4:
    """One NF4 layer: `weight` and what bitsandbytes puts beside it."""

    theirs: str
    ours: str
    shape: tuple[int, int]
    double: bool

    @property
    def sources(self) -> list[str]:
        """Their names."""
        nested = ["nested_absmax", "nested_quant_map"] if self.double else []
        ends = ["absmax", "quant_map", *nested, "quant_state.bitsandbytes__nf4"]
        return [f"{self.theirs}.weight", *(f"{self.theirs}.weight.{end}" for end in ends)]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return [f"{self.ours}.{name}" for name in ("weight", "absmax", *(("nested", "offset") if self.double else ()))]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that gives theirs by name. Raises InputError for another code or block size."""
        stored = get(self.sources[-1])
        if stored.dtype != torch.uint8 or stored.numel() > MAX_STATE_BYTES:
            raise InputError(f"{self.sources[-1]}: must be at most {MAX_STATE_BYTES:,} bytes of JSON")
        about = parse_json(decode(bytes(stored.flatten().tolist()), self.sources[-1]), self.sources[-1])
        offset = about.get("nested_offset")
        if self.double and (isinstance(offset, bool) or not isinstance(offset, int | float)):
            raise InputError(f"{self.sources[-1]}: nested_offset: {shown(offset)}; must be a number")
        expected = {"quant_type": "nf4", "blocksize": nf4.BLOCK, "shape": list(self.shape)}
        expected |= {"nested_blocksize": nf4.OUTER} if self.double else {}
        if wrong := {key: about.get(key) for key, value in expected.items() if about.get(key) != value}:
            raise InputError(f"{self.theirs}: quantized with {wrong}; Quatrain reads {expected}")
        yield f"{self.ours}.weight", get(f"{self.theirs}.weight").view(torch.uint8).reshape(-1, 1)
        yield f"{self.ours}.absmax", get(f"{self.theirs}.weight.absmax")
        if self.double:
            yield f"{self.ours}.nested", get(f"{self.theirs}.weight.nested_absmax")
            yield f"{self.ours}.offset", torch.tensor(float(about["nested_offset"]))

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        about: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": nf4.BLOCK, "dtype": "float32", "shape": list(self.shape)
        }  # fmt: skip
        values = {"": get(f"{self.ours}.weight"), "absmax": get(f"{self.ours}.absmax"),
                  "quant_map": torch.tensor(nf4.CODE)}  # fmt: skip
        if self.double:
            values |= {"nested_absmax": get(f"{self.ours}.nested"), "nested_quant_map": dynamic_code()}
            offset = float(get(f"{self.ours}.offset"))
            about |= {"nested_blocksize": nf4.OUTER, "nested_dtype": "float32", "nested_offset": offset}
        values["quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
        yield from ((f"{self.theirs}.weight{'.' if end else ''}{end}", value) for end, value in values.items())


def packed(operation: Any, layer: NF4Linear) -> Any:
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


def quantization_config(model: Model) -> dict[str, Any]:
    """The `quantization_config` of a model's config.json, as transformers writes it for bitsandbytes."""
    from quatrain.compression.files import file_names

    names = file_names(model)
    layers = [module for module in model.modules() if isinstance(module, nf4.NF4Linear)]
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
