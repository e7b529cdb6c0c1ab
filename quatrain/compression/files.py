"""How int8 and int4 layers stand in a model folder: the layout of compressed-tensors, which transformers and vLLM read.

Its format `pack-quantized` keeps four weights of 8 bits in an int32, or eight of 4, the lowest bits first, each raised
by 128 or 8, and a scale for each output channel or group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.compression import nf4_files
from quatrain.compression.int4 import GROUPS, Int4Linear
from quatrain.compression.int8 import Int8Linear
from quatrain.compression.nf4 import NF4Linear
from quatrain.core.errors import InputError
from quatrain.core.reading import shown
from quatrain.models.families import family
from quatrain.models.families.kinds import TEXTS
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.stack import Model

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
OFFSET = 128
SHARED = {"type": "int", "symmetric": True, "dynamic": False}
WEIGHTS: dict[int, dict[str, Any]] = {
    8: {"num_bits": 8, **SHARED, "strategy": "channel", "group_size": None},
    4: {"num_bits": 4, **SHARED, "strategy": "group", "actorder": None},
}
"""What the weights of a `quantization_config` are, by their bits; those of 4 bits have a group size too."""


@dataclass(frozen=True)
class Packed:
    """One layer: `weight_packed` (out, in / 4 or 8) int32, `weight_scale` (out, groups), `weight_shape` of theirs."""

    theirs: str
    ours: str
    columns: int
    bits: int

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
        eight = self.bits == 8
        yield f"{self.ours}.weight", unpack(words, int(shape[1])) if eight else words.view(torch.uint8)
        yield f"{self.ours}.scale", scale.reshape(-1) if eight else scale

    def write(self, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, from a function that gives ours by name."""
        weight, scale = (get(name) for name in self.targets)
        # Bytes of two weights, the first below, are their words already.
        words = pack(weight) if self.bits == 8 else weight.contiguous().view(torch.int32)
        shape = torch.tensor([len(weight), self.columns])
        yield from zip(self.sources, (words, scale.reshape(len(weight), -1), shape), strict=True)


def packed(operation: Any, layer: Int8Linear | Int4Linear) -> Packed:
    """The operation of a layer, in place of the family's for the float one.

    Raises InputError for layers that are no plain linear layer in the family's files: the format has no place for them.
    """
    if not isinstance(operation, Rename) or operation.transpose:
        raise InputError(
            f"{operation.theirs}: this family fuses or transposes it in its files, and compressed-tensors, the format "
            f"of {layer.method} model folders, has no place for that. Quantize a model of another family, such as "
            "llama, or keep it in memory alone."
        )
    theirs, ours = operation.theirs.removesuffix(".weight"), operation.ours.removesuffix(".weight")
    return Packed(theirs, ours, layer.in_features, 8 if isinstance(layer, Int8Linear) else 4)


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
    """The `quantization_config` of a model's config.json: its weights, and the layers that stay."""
    names = file_names(model)
    groups = {layer.group for layer in model.modules() if isinstance(layer, Int4Linear)}
    weights = WEIGHTS[4] | {"group_size": groups.pop()} if groups else WEIGHTS[8]
    kept = [names.get(name, name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
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

    Raises InputError, every point at once, for a quantization that is not known here.
    """
    from quatrain.adapters.layer import replace_module
    from quatrain.adapters.targets import is_of_head

    wanted = config.get("quantization_config")
    if not wanted:
        return
    _check(wanted)
    ours = wanted["quant_method"] == METHOD
    kept = wanted.get("ignore" if ours else "llm_int8_skip_modules") or []
    names = file_names(model)
    for name, module in list(model.named_modules()):
        stays = _ignored(names.get(name, name), kept) or (is_of_head(name) and not ours)
        if isinstance(module, nn.Linear) and not stays:
            replace_module(model, name, _layer(module, wanted))


def _layer(linear: nn.Linear, wanted: dict[str, Any]) -> nn.Module:
    """The layer that a `quantization_config` wants in a linear one's place."""
    sizes = linear.in_features, linear.out_features, linear.bias is not None, linear.weight.device
    if wanted["quant_method"] == nf4_files.METHOD:
        return NF4Linear(*sizes, double=bool(wanted.get("bnb_4bit_use_double_quant")))
    (group,) = wanted["config_groups"].values()
    weights = group.get("weights") or {}
    return Int4Linear(*sizes, group=weights["group_size"]) if weights.get("num_bits") == 4 else Int8Linear(*sizes)


def _check(wanted: dict[str, Any]) -> None:
    problems = []
    if not isinstance(wanted, dict):
        raise InputError(f"quantization_config: {shown(wanted)}; must be a table")
    kept = wanted.get("ignore" if wanted.get("quant_method") == METHOD else "llm_int8_skip_modules")
    if kept is not None and not TEXTS.fits(kept):
        problems.append(f"ignore: {shown(kept)}; must be a list of names")
    else:
        problems += [f"ignore: {shown(name)}; no regular expression" for name in kept or () if not _compiles(name)]
    if wanted.get("quant_method") == nf4_files.METHOD:
        problems += nf4_files.problems_of(wanted)
    elif wanted.get("quant_method") != METHOD:
        known = f"{METHOD} and {nf4_files.METHOD}"
        problems.append(f"quant_method: {shown(wanted.get('quant_method'))}; Quatrain reads {known}")
    elif wanted.get("format") != FORMAT:
        problems.append(f"format: {shown(wanted.get('format'))}; Quatrain reads {FORMAT}")
    else:
        groups = wanted.get("config_groups") or {}
        if not _are_groups(groups):
            problems.append(f"config_groups: {shown(groups)}; must be a table of one group, a table with its weights")
            groups = {}
        elif len(groups) != 1 or any(group.get("targets") != ["Linear"] for group in groups.values()):
            problems.append("config_groups: must be one group whose targets are Linear")
        for name, group in groups.items():
            weights = group.get("weights") or {}
            problems += [f"config_groups.{name}.weights.{problem}" for problem in _problems_of(weights)]
            problems += [
                f"config_groups.{name}.{key}: quantized activations are not known to Quatrain"
                for key in ("input_activations", "output_activations")
                if group.get(key)
            ]
    if problems:
        raise InputError("This quantization_config of config.json cannot be used:", problems)


def _are_groups(groups: Any) -> bool:
    """Whether `config_groups` is a table of tables, each with a table of its weights or none."""
    return isinstance(groups, dict) and all(
        isinstance(group, dict) and isinstance(group.get("weights"), dict | None) for group in groups.values()
    )


def _problems_of(weights: dict[str, Any]) -> list[str]:
    """What of the weights' entries is not read here."""
    bits = weights.get("num_bits", 8)
    if not isinstance(bits, int) or bits not in WEIGHTS:
        return [f"num_bits: {shown(bits)}; Quatrain reads {' or '.join(map(str, WEIGHTS))}"]
    problems = [
        f"{key}: {shown(weights.get(key))}; Quatrain reads {value!r}"
        for key, value in WEIGHTS[bits].items()
        if weights.get(key, value) != value
    ]
    size = weights.get("group_size")
    if bits == 4 and (not isinstance(size, int) or size not in GROUPS):
        problems.append(f"group_size: {shown(size)}; Quatrain reads {', '.join(map(str, GROUPS))}")
    return problems


def _compiles(pattern: str) -> bool:
    """Whether an entry of `ignore` is a name, or a regular expression that can be read."""
    try:
        re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _ignored(name: str, patterns: list[str]) -> bool:
    return any(
        re.match(pattern.removeprefix("re:"), name) is not None if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )
