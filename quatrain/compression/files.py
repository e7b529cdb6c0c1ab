"""Reads the `quantization_config` of a folder: checks it, and puts the quantized layers it describes into a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from quatrain.compression import mxfp4, nf4
from quatrain.compression.fp8 import FP8Linear
from quatrain.compression.gptq_files import LAYOUTS, layout_problems
from quatrain.compression.int4 import GROUPS, Int4Linear
from quatrain.compression.int8 import Int8Linear, W8A8Linear
from quatrain.compression.layer import QuantizedLinear
from quatrain.compression.packing import (
    ACTIVATIONS,
    FLOAT_FORMAT,
    FLOAT_WEIGHTS,
    FORMAT,
    INTEGER_FORMAT,
    METHOD,
    WEIGHTS,
    paths_in_files,
)
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.value_types import TEXTS
from quatrain.models.modules import is_in_head, replace_module
from quatrain.models.transformer.stack import Model

SKIP_KEYS = {
    METHOD: "ignore",
    nf4.METHOD: "llm_int8_skip_modules",
    mxfp4.METHOD: mxfp4.SKIP_KEY,
    **dict.fromkeys(LAYOUTS, "modules_to_not_convert"),
}
"""The key that lists the float layers, by `quant_method`."""


def replace_layers(model: Model, config: dict[str, Any]) -> None:
    """Puts the layers of a `config.json`'s `quantization_config` into a model that is about to be filled.

    Raises InputError, with all problems at once, for a quantization that Quatrain does not read.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return
    _check(quantization)
    method = quantization["quant_method"]
    skipped = quantization.get(SKIP_KEYS[method]) or []
    paths = paths_in_files(model)
    for name, module in list(model.named_modules()):
        is_float = _matches(paths.get(name, name), skipped) or (is_in_head(name) and method != METHOD)
        if method == mxfp4.METHOD:
            is_float = not mxfp4.is_quantized(name, module)
        if isinstance(module, nn.Linear) and not is_float:
            replace_module(model, name, _layer(module, quantization))


def _layer(linear: nn.Linear, quantization: dict[str, Any]) -> nn.Module:
    """The empty quantized layer that replaces a linear one."""
    if quantization["quant_method"] == nf4.METHOD:
        return nf4.NF4Linear.empty_like(linear, double=bool(quantization.get("bnb_4bit_use_double_quant")))
    if quantization["quant_method"] == mxfp4.METHOD:
        return mxfp4.MXFP4Linear.empty_like(linear)
    if quantization["quant_method"] in LAYOUTS:
        layer = Int4Linear.empty_like(linear, group=quantization["group_size"])
        layer.layout = quantization["quant_method"]
        return layer
    (group,) = quantization["config_groups"].values()
    weights = group.get("weights") or {}
    if quantization["format"] != FORMAT:
        return FORMATS[quantization["format"]].layer.empty_like(linear)
    if weights.get("num_bits") == 4:
        return Int4Linear.empty_like(linear, group=weights["group_size"])
    return Int8Linear.empty_like(linear)


@dataclass(frozen=True)
class _Format:
    """What a format of compressed-tensors holds: its entries of weights by bits, of activations, and the layer."""

    weights: dict[int, dict[str, Any]]
    activations: dict[str, Any] | None
    layer: type[QuantizedLinear]


FORMATS = {
    FORMAT: _Format(WEIGHTS, None, Int8Linear),
    INTEGER_FORMAT: _Format({8: WEIGHTS[8]}, ACTIVATIONS, W8A8Linear),
    FLOAT_FORMAT: _Format({8: FLOAT_WEIGHTS}, None, FP8Linear),
}


def _check(quantization: Any) -> None:
    if not isinstance(quantization, dict):
        raise InputError(f"quantization_config: {format_value(quantization)}; must be a table")
    method = quantization.get("quant_method")
    skip_key = SKIP_KEYS.get(method, SKIP_KEYS[METHOD]) if isinstance(method, str) else SKIP_KEYS[METHOD]
    problems = _pattern_problems(skip_key, quantization.get(skip_key))
    if method == nf4.METHOD:
        problems += nf4.config_problems(quantization)
    elif isinstance(method, str) and method in LAYOUTS:
        problems += layout_problems(quantization)
    elif method != METHOD and method != mxfp4.METHOD:
        problems.append(f"quant_method: {format_value(method)}; Quatrain reads {' and '.join(SKIP_KEYS)}")
    elif method == METHOD and quantization.get("format") not in tuple(FORMATS):
        problems.append(f"format: {format_value(quantization.get('format'))}; Quatrain reads {', '.join(FORMATS)}")
    elif method == METHOD:
        problems += _group_problems(quantization.get("config_groups") or {}, FORMATS[quantization["format"]])
    if problems:
        raise InputError("This quantization_config of config.json cannot be used:", problems)


def _pattern_problems(key: str, patterns: Any) -> list[str]:
    """The faults of a list of layer names, in which `re:` marks a regular expression."""
    if patterns is not None and not TEXTS.accepts(patterns):
        return [f"{key}: {format_value(patterns)}; must be a list of names"]
    problems = []
    for pattern in patterns or ():
        try:
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except (re.error, RecursionError, OverflowError):
            problems.append(f"{key}: {format_value(pattern)}; not a valid regular expression")
    return problems


def _group_problems(groups: Any, form: _Format) -> list[str]:
    """The faults of `config_groups`, a table of tables that each have a table `weights` or none."""
    if not isinstance(groups, dict) or not all(
        isinstance(group, dict) and isinstance(group.get("weights"), dict | None) for group in groups.values()
    ):
        return [f"config_groups: {format_value(groups)}; must be a table of one group, a table with its weights"]
    problems = []
    if len(groups) != 1 or any(group.get("targets") != ["Linear"] for group in groups.values()):
        problems.append("config_groups: must be one group whose targets are Linear")
    for name, group in groups.items():
        here = f"config_groups.{name}"
        problems += [f"{here}.weights.{each}" for each in _weight_problems(group.get("weights") or {}, form)]
        activations = group.get("input_activations")
        if form.activations is None and activations:
            problems.append(f"{here}.input_activations: Quatrain does not read quantized activations of this format")
        elif form.activations is not None:
            told = activations if isinstance(activations, dict) else {}
            problems += [f"{here}.input_activations.{each}" for each in _different(told, form.activations)]
        if group.get("output_activations"):
            problems.append(f"{here}.output_activations: Quatrain does not read quantized activations")
    return problems


def _weight_problems(weights: dict[str, Any], form: _Format) -> list[str]:
    """The faults of a group's `weights`."""
    bits = weights.get("num_bits", 8)
    if not isinstance(bits, int) or bits not in form.weights:
        return [f"num_bits: {format_value(bits)}; Quatrain reads {' or '.join(map(str, form.weights))}"]
    problems = _different(weights, form.weights[bits])
    size = weights.get("group_size")
    if bits == 4 and (not isinstance(size, int) or size not in GROUPS):
        problems.append(f"group_size: {format_value(size)}; Quatrain reads {', '.join(map(str, GROUPS))}")
    return problems


def _different(entries: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The entries that are there and differ from what is read."""
    return [
        f"{key}: {format_value(entries.get(key))}; Quatrain reads {format_value(value)}"
        for key, value in expected.items()
        if entries.get(key, value) != value
    ]


def _matches(name: str, patterns: list[str]) -> bool:
    return any(
        re.match(pattern.removeprefix("re:"), name) is not None if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )
