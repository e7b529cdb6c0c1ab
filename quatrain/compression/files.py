"""Reads a folder's `quantization_config`: checks it and puts the layers it describes into a model."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from quatrain.compression import nf4
from quatrain.compression.int4 import GROUPS, Int4Linear
from quatrain.compression.int8 import Int8Linear
from quatrain.compression.packing import FORMAT, METHOD, WEIGHTS, file_names
from quatrain.core.errors import InputError
from quatrain.core.reading import shown
from quatrain.models.families.kinds import TEXTS
from quatrain.models.modules import is_in_head, replace_module
from quatrain.models.transformer.stack import Model


def prepare(model: Model, config: dict[str, Any]) -> None:
    """Puts the layers that a folder's `quantization_config` asks for into a model about to be filled.

    Raises InputError, every point at once, for a quantization that is not known here.
    """
    wanted = config.get("quantization_config")
    if not wanted:
        return
    _check(wanted)
    ours = wanted["quant_method"] == METHOD
    kept = wanted.get("ignore" if ours else "llm_int8_skip_modules") or []
    names = file_names(model)
    for name, module in list(model.named_modules()):
        stays = _ignored(names.get(name, name), kept) or (is_in_head(name) and not ours)
        if isinstance(module, nn.Linear) and not stays:
            replace_module(model, name, _layer(module, wanted))


def _layer(linear: nn.Linear, wanted: dict[str, Any]) -> nn.Module:
    """The layer that a `quantization_config` wants in a linear one's place."""
    sizes = linear.in_features, linear.out_features, linear.bias is not None, linear.weight.device
    if wanted["quant_method"] == nf4.METHOD:
        return nf4.NF4Linear(*sizes, double=bool(wanted.get("bnb_4bit_use_double_quant")))
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
    if wanted.get("quant_method") == nf4.METHOD:
        problems += nf4.problems_of(wanted)
    elif wanted.get("quant_method") != METHOD:
        known = f"{METHOD} and {nf4.METHOD}"
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
