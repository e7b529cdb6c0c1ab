"""Reads and writes the rotary keys of a config.json, in the old and the new layout.

Old: `rope_theta`, `rope_scaling` (its kind is `rope_type` or `type`) and `partial_rotary_factor` at the top level;
Gemma 3 adds `rope_local_base_freq` for its sliding-window layers. New (transformers 5): all of them in
`rope_parameters`, in Gemma 3 once for each type of layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value, printable
from quatrain.models.families.value_types import POSITIVE, SHARE
from quatrain.models.transformer.config import MAX_SIZE, ModelConfig, RotaryScaling

KEYS = frozenset(
    {"rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"}
)

LAYER_TYPES = ("full_attention", "sliding_attention")
"""The types of layers, as transformers names them."""

LAYERS = dict(zip(LAYER_TYPES, ("full", "sliding"), strict=True))
"""The types of layers: transformers' names and ours."""

SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        (),
        (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "longrope": (("short_factor", "long_factor"), ("factor", "original_max_position_embeddings", "attention_factor")),
    "proportional": ((), ("partial_rotary_factor", "factor")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
}
"""The required and the optional parameters of each kind of scaling."""

OTHER_KEYS = frozenset({"rope_theta", "finetuned"})
"""Keys of `rope_scaling` that are not parameters of the scaling; `finetuned` (first YaRN models) has no effect.
`partial_rotary_factor` is one of the proportional scaling alone."""


def read(
    config: dict[str, Any], default_theta: float = 10000.0, *, names: dict[str, str] | None = None
) -> dict[str, Any]:
    """The fields `rope_theta` and `rope_scaling` from a config.json; `rotary_dim` reads the partial factor.

    `names` maps a family's own names of scalings to the standard ones. Raises InputError for an unknown scaling, or one
    with missing or invalid parameters.
    """
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if unknown := sorted(set(rope) & set(LAYER_TYPES)):
        raise InputError(
            f"rope_parameters: {', '.join(unknown)}; a {config.get('model_type')} model has the same for every layer."
        )
    base = first_given(rope.get("rope_theta"), config.get("rope_theta"), default_theta)
    original = config.get("original_max_position_embeddings")
    return {"rope_theta": theta(base), "rope_scaling": scaling(rope, original=original, names=names)}


def read_whole(config: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """`read` for a family that rotates all channels. Raises InputError for a partial rotary factor."""
    width = rotary_dim(config, 1.0)
    full = rotary_dim({**config, "partial_rotary_factor": None, "rope_parameters": None, "rope_scaling": None}, 1.0)
    if width != full:
        raise InputError(
            f"partial_rotary_factor: only {width} of {full} channels of each head would be rotated; "
            f"a {config.get('model_type')} model rotates all: leave it out."
        )
    return read(config, default_theta)


def read_by_layer(config: dict[str, Any], default_theta: float, default_local_theta: float) -> dict[str, Any]:
    """The rotary fields of a family with separate ones for full and sliding-window layers, such as Gemma 3.

    Raises InputError for an unknown scaling, and for `rope_parameters` that are not given by type of layer.
    """
    full, local = by_layer(config)
    full |= config.get("rope_scaling") or {}
    original = config.get("original_max_position_embeddings")
    return {
        "rope_theta": theta(first_given(full.get("rope_theta"), config.get("rope_theta"), default_theta)),
        "rope_scaling": scaling(full, original=original),
        "local_rope_theta": theta(
            first_given(local.get("rope_theta"), config.get("rope_local_base_freq"), default_local_theta)
        ),
        "local_rope_scaling": scaling(local, original=original),
    }


def by_layer(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The `rope_parameters` of the full and of the sliding-window layers.

    Raises InputError for anything else than a table for each type of layer.
    """
    both = config.get("rope_parameters") or {}
    problems = [
        f"{printable(name[:80])}: not a type of layer; must be one of {', '.join(LAYER_TYPES)}"
        for name in both
        if name not in LAYER_TYPES
    ]
    problems += [
        f"{name}: {format_value(both[name])}; must be a table"
        for name in LAYER_TYPES
        if not isinstance(both.get(name), dict | None)
    ]
    if problems:
        raise InputError("These rope_parameters must be given for each type of layer:", problems)
    return [dict(both.get(name) or {}) for name in LAYER_TYPES]


def scaling(
    rope: dict[str, Any], *, original: int | None = None, names: dict[str, str] | None = None
) -> RotaryScaling | None:
    """The `RotaryScaling` of a `rope_scaling` object; None for the default, without scaling.

    `original` is the top-level `original_max_position_embeddings` of config.json, which overrides the object's. Raises
    InputError naming every parameter that is missing, unknown or invalid.
    """
    rope = {key: value for key, value in rope.items() if value is not None}
    if rope.get("rope_type", rope.get("type")) != "proportional":
        rope.pop("partial_rotary_factor", None)
    rope = {key: value for key, value in rope.items() if key not in OTHER_KEYS}
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if not isinstance(kind, str):
        raise InputError(f"rope_type: {format_value(kind)}; must be a text: default, {', '.join(SCALINGS)}")
    kind = (names or {}).get(kind, kind)
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise InputError(
            f"rope_type: {format_value(kind)} is not a known rotary scaling; "
            f"must be one of default, {', '.join(SCALINGS)}."
        )
    needed, optional = SCALINGS[kind]
    if original is not None and "original_max_position_embeddings" in (*needed, *optional):
        rope["original_max_position_embeddings"] = original
    problems = [f"{name}: missing; {kind} rotary scaling needs it" for name in needed if name not in rope]
    for name, value in rope.items():
        if name not in (*needed, *optional):
            problems.append(f"{printable(name[:80])}: unknown parameter of {kind} rotary scaling")
        elif expected := _expected(name, value):
            problems.append(f"{name}: {format_value(value)}; must be {expected}")
    if not problems:
        problems += _contradictions(rope)
    if problems:
        raise InputError("This rope_scaling cannot be used:", problems)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in rope.items()}
    return RotaryScaling(kind, tuple(sorted(values.items())))


def _contradictions(rope: dict[str, Any]) -> Iterator[str]:
    """Problems of pairs of parameters in the wrong order."""
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        if low in rope and high in rope and rope[low] >= rope[high]:
            yield f"{low}: {rope[low]}; must be below {high} ({rope[high]})"


def layer_types(config: dict[str, Any], default: list[str]) -> tuple[str, ...]:
    """The type of each layer from config.json, else `default`. Raises InputError for an unknown type."""
    named = default if config.get("layer_types") is None else config["layer_types"]
    unknown = sorted({str(kind) for kind in named} - set(LAYERS))
    if unknown:
        raise InputError(f"layer_types: {', '.join(unknown)}; must be one of {', '.join(LAYERS)}.")
    return tuple(LAYERS[kind] for kind in named)


def written_layer_types(config: ModelConfig) -> list[str]:
    """The type of each layer by transformers' names."""
    names = {ours: theirs for theirs, ours in LAYERS.items()}
    return [names[kind] for kind in config.layer_types]


def write(config: ModelConfig) -> dict[str, Any]:
    """The rotary keys of a config.json, in the layout that every version of transformers reads."""
    written: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        written["rope_scaling"] = _written(config.rope_scaling)
    return written


def write_by_layer(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_by_layer` reads; in the new layout only if the old one cannot express them."""
    local_theta, local = config.local_rope_theta, config.local_rope_scaling
    if local_theta is None:
        local_theta, local = config.rope_theta, config.rope_scaling
    if local is None:
        return {**write(config), "rope_local_base_freq": local_theta}
    return write_parameters_by_layer(config)


def write_parameters_by_layer(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_by_layer` reads, always in the new layout: a table for each type of layer."""
    local_theta, local = config.local_rope_theta, config.local_rope_scaling
    if local_theta is None:
        local_theta, local = config.rope_theta, config.rope_scaling
    return {
        "rope_parameters": {
            kind: {**_written(value), "rope_theta": theta}
            for kind, value, theta in zip(
                LAYER_TYPES, (config.rope_scaling, local), (config.rope_theta, local_theta), strict=True
            )
        }
    }


def written_parameters(config: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` of a family with the same rotary positions in every layer."""
    return {**_written(config.rope_scaling), "rope_theta": config.rope_theta}


def _written(value: RotaryScaling | None) -> dict[str, Any]:
    if value is None:
        return {"rope_type": "default"}
    numbers = {name: list(number) if isinstance(number, tuple) else number for name, number in value.values}
    return {"rope_type": value.kind, **numbers}


def first_given(*values: Any) -> Any:
    """The first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def theta(value: Any) -> float:
    """A rotary base as a float. Raises InputError unless it is a number above 0."""
    if not _is_number(value):
        raise InputError(f"rope_theta: {format_value(value)}; must be {POSITIVE.description}")
    return float(value)


def _expected(name: str, value: Any) -> str | None:
    """What a parameter of a scaling must be, if `value` is not valid; else None."""
    if name == "truncate":
        return None if isinstance(value, bool) else "true or false"
    if name in ("short_factor", "long_factor"):
        valid = isinstance(value, list | tuple) and all(_is_number(number) for number in value)
        return None if valid else "a list of numbers above 0"
    if name == "original_max_position_embeddings":
        valid = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= MAX_SIZE
        return None if valid else f"a whole number from 2 to {MAX_SIZE:,}"
    if name == "partial_rotary_factor":
        return None if SHARE.accepts(value) else SHARE.description
    return None if _is_number(value) else POSITIVE.description


def _is_number(value: Any) -> bool:
    return POSITIVE.accepts(value)


def rotary_dim(config: dict[str, Any], default: float, key: str = "partial_rotary_factor") -> int:
    """Number of rotated channels per head, from the factor under `key` or in `rope_parameters` of a config.json.

    Raises InputError for an invalid factor, and for two different ones.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factors = {f"{key} {config[key]}": config[key]} if config.get(key) is not None else {}
    if rope.get("partial_rotary_factor") is not None:
        factors[f"rope_parameters {rope}"] = rope["partial_rotary_factor"]
    factor = next(iter(factors.values()), default)
    if len({repr(value) for value in factors.values()}) > 1:
        raise InputError(f"{' and '.join(factors)}: two different partial rotary factors; leave one of them out.")
    if not SHARE.accepts(factor):
        raise InputError(f"{key}: {format_value(factor)}; must be {SHARE.description}")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    if width >= 2 and width * factor < 2:
        raise InputError(
            f"{key}: {factor}; none of the {width} channels of a head would be rotated; must cover at least 2 of them"
        )
    return int(width * factor)


def partial_factor(config: ModelConfig) -> float:
    """The partial rotary factor, such that `int(head_dim * factor)` is `rotary_dim`."""
    rotated = config.rotary_dim or config.head_dim
    factor = rotated / config.head_dim
    return factor if int(config.head_dim * factor) == rotated else math.nextafter(factor, 1.0)
