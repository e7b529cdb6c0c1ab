"""How int8 linear layers stand in a model folder: the layout of compressed-tensors, which transformers and vLLM read.

Its format `pack-quantized` keeps four weights in an int32, the lowest byte first, each raised by 128, and a scale for
each output channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.compression import nf4_files
from quatrain.compression.int8 import Int8Linear
from quatrain.compression.nf4 import NF4Linear
from quatrain.errors import InputError
from quatrain.models.families import family
from quatrain.models.families.weights import Rename
from quatrain.models.stack import Model

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
OFFSET = 128
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False}


@dataclass(frozen=True)
class Packed:
    """One int8 layer: `weight_packed` (out, in / 4) int32, `weight_scale` (out, 1) and `weight_shape` of theirs."""

    theirs: str
    ours: str

    @property
    def sources(self) -> list[str]:
        """Their names."""
        return [f"{self.theirs}.weight_packed", f"{self.theirs}.weight_scale", f"{self.theirs}.weight_shape"]

    @property
    def targets(self) -> list[str]:
        """Our names."""
        return [f"{self.ours}.weight", f"{self.ours}.scale"]

    def read(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, from a function that gives theirs by name."""
        words, scale, shape = (get(name) for name in self.sources)
        yield f"{self.ours}.weight", unpack(words, int(shape[1]))
        yield f"{self.ours}.scale", scale.reshape(-1)

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        weight, scale = (get(name) for name in self.targets)
        values = pack(weight), scale.reshape(-1, 1), torch.tensor(weight.shape)
        yield from zip(self.sources, values, strict=True)


def packed(operation: Any) -> Packed:
    """The operation of an int8 layer, in place of the family's for the float one.

    Raises InputError for layers that are no plain linear layer in the family's files: the format has no place for them.
    """
    if not isinstance(operation, Rename) or operation.transpose:
        raise InputError(
            f"{operation.theirs}: this family fuses or transposes it in its files, and compressed-tensors, the format "
            "of int8 model folders, has no place for that. Quantize a model of another family, such as llama."
        )
    return Packed(operation.theirs.removesuffix(".weight"), operation.ours.removesuffix(".weight"))


def pack(weight: Tensor) -> Tensor:
    """int8 (out, in) as int32 (out, ceil(in / 4)): four weights a word, raised by 128, lowest byte first."""
    raised = (weight.to(torch.int16) + OFFSET).to(torch.uint8)
    missing = -weight.shape[1] % 4
    if missing:
        raised = nn.functional.pad(raised, (0, missing))
    words = raised.view(weight.shape[0], -1, 4).to(torch.int64)
    shifts = torch.tensor([0, 8, 16, 24])
    unsigned = (words << shifts).sum(dim=-1)
    return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).to(torch.int32)


def unpack(words: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`: int32 (out, ceil(columns / 4)) as int8 (out, columns)."""
    parts = (words.to(torch.int64)[..., None] >> torch.tensor([0, 8, 16, 24])) & 0xFF
    return (parts.flatten(1)[:, :columns] - OFFSET).to(torch.int8)


def quantization_config(model: Model) -> dict[str, Any]:
    """The `quantization_config` of a model's config.json: 8-bit weights by channel, and the layers that stay."""
    names = file_names(model)
    kept = [names.get(name, name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    group = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None, "output_activations": None}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(kept),
    }


def file_names(model: Model) -> dict[str, str]:
    """Path of each of our layers -> its path in the family's files."""
    operations = family(model.config.family).weights(model.config)
    return {
        operation.ours.removesuffix(".weight"): operation.theirs.removesuffix(".weight")
        for operation in operations
        if isinstance(operation, Rename) and operation.theirs.endswith(".weight")
    }


def prepare(model: Model, config: dict[str, Any]) -> None:
    """Puts the layers that a folder's `quantization_config` asks for into a model about to be filled.

    Raises InputError, every point at once, for a quantization that is not 8-bit symmetric by channel.
    """
    from quatrain.adaptation.layer import replace_module
    from quatrain.adaptation.targets import is_of_head

    wanted = config.get("quantization_config")
    if not wanted:
        return
    _check(wanted)
    four = wanted["quant_method"] == nf4_files.METHOD
    kept = wanted.get("llm_int8_skip_modules" if four else "ignore") or []
    names = file_names(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or _ignored(names.get(name, name), kept) or (four and is_of_head(name)):
            continue
        sizes = module.in_features, module.out_features, module.bias is not None, module.weight.device
        layer: nn.Module
        if four:
            layer = NF4Linear(*sizes, double=bool(wanted.get("bnb_4bit_use_double_quant")))
        else:
            layer = Int8Linear(*sizes)
        replace_module(model, name, layer)


def _check(wanted: dict[str, Any]) -> None:
    problems = []
    if wanted.get("quant_method") == nf4_files.METHOD:
        problems += nf4_files.problems_of(wanted)
    elif wanted.get("quant_method") != METHOD:
        known = f"{METHOD} and {nf4_files.METHOD}"
        problems.append(f"quant_method: {wanted.get('quant_method')!r}; Quatrain reads {known}")
    elif wanted.get("format") != FORMAT:
        problems.append(f"format: {wanted.get('format')!r}; Quatrain reads {FORMAT}")
    else:
        groups = wanted.get("config_groups") or {}
        if len(groups) != 1 or any(group.get("targets") != ["Linear"] for group in groups.values()):
            problems.append("config_groups: must be one group whose targets are Linear")
        for name, group in groups.items():
            weights = group.get("weights") or {}
            problems += [
                f"config_groups.{name}.weights.{key}: {weights.get(key)!r}; Quatrain reads {value!r}"
                for key, value in WEIGHTS.items()
                if weights.get(key, value) != value
            ]
            problems += [
                f"config_groups.{name}.{key}: quantized activations are not known to Quatrain"
                for key in ("input_activations", "output_activations")
                if group.get(key)
            ]
    if problems:
        raise InputError("This quantization_config of config.json cannot be used:", problems)


def _ignored(name: str, patterns: list[str]) -> bool:
    return any(
        re.match(pattern.removeprefix("re:"), name) is not None if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )
