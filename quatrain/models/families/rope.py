"""The rotary keys of a config.json, in their old and their new layout.

Old: `rope_theta`, `rope_scaling` (its kind under `rope_type`, or `type`), `partial_rotary_factor`, each at the top;
Gemma 3 adds `rope_local_base_freq` for its sliding layers. New (transformers 5): all of them in `rope_parameters`,
which Gemma 3 has for each type of layer.
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
"""transformers' names of the types of layers."""

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
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
}
"""The numbers that each kind of scaling needs, and those that it may have."""

APART = frozenset({"rope_theta", "partial_rotary_factor", "finetuned"})
"""Keys of a `rope_scaling` that are no numbers of it; `finetuned`, of the first YaRN models, shapes nothing."""


def read(
    config: dict[str, Any], default_theta: float = 10000.0, *, names: dict[str, str] | None = None
) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from a config.json; what part of a head turns is for `rotary_dim` to read.

    `names` are a family's own names of scalings. Raises InputError for a scaling that is not known, or lacks a number.
    """
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if unknown := sorted(set(rope) & set(LAYER_TYPES)):
        raise InputError(
            f"rope_parameters: {', '.join(unknown)}; a {config.get('model_type')} has the same for every layer."
        )
    base = given(rope.get("rope_theta"), config.get("rope_theta"), default_theta)
    original = config.get("original_max_position_embeddings")
    return {"rope_theta": theta(base), "rope_scaling": scaling(rope, original=original, names=names)}


def read_whole(config: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """`read` for a family whose heads turn as a whole. Raises InputError where a config.json wants a part of them."""
    width = rotary_dim(config, 1.0)
    whole = rotary_dim({**config, "partial_rotary_factor": None, "rope_parameters": None, "rope_scaling": None}, 1.0)
    if width != whole:
        raise InputError(
            f"partial_rotary_factor: only {width} of {whole} channels of each head would turn; "
            f"a {config.get('model_type')} turns all, so leave it out."
        )
    return read(config, default_theta)


def read_by_layer(config: dict[str, Any], default_theta: float, default_local_theta: float) -> dict[str, Any]:
    """The rotary fields of a family whose full and sliding layers have their own, as Gemma 3's do.

    Raises InputError for a scaling that is not known, and for `rope_parameters` that are not by type of layer.
    """
    whole, local = by_layer(config)
    whole |= config.get("rope_scaling") or {}
    original = config.get("original_max_position_embeddings")
    return {
        "rope_theta": theta(given(whole.get("rope_theta"), config.get("rope_theta"), default_theta)),
        "rope_scaling": scaling(whole, original=original),
        "local_rope_theta": theta(
            given(local.get("rope_theta"), config.get("rope_local_base_freq"), default_local_theta)
        ),
        "local_rope_scaling": scaling(local, original=original),
    }


def by_layer(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The `rope_parameters` of the full layers and of the sliding ones.

    Raises InputError for any that are not a table for a type of layer.
    """
    both = config.get("rope_parameters") or {}
    problems = [
        f"{printable(name[:80])}: is none of {', '.join(LAYER_TYPES)}" for name in both if name not in LAYER_TYPES
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
    """A `rope_scaling` object as ours; None for the plain one.

    `original` is what config.json itself says of `original_max_position_embeddings`, which counts more than the object.
    Raises InputError naming every number that is missing, not known or no number.
    """
    rope = {key: value for key, value in rope.items() if key not in APART and value is not None}
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if not isinstance(kind, str):
        raise InputError(f"rope_type: {format_value(kind)}; must be a text: default, {', '.join(SCALINGS)}")
    kind = (names or {}).get(kind, kind)
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise InputError(
            f"rope_type: {format_value(kind)} is a rotary scaling that Quatrain does not know; "
            f"known: default, {', '.join(SCALINGS)}."
        )
    needed, optional = SCALINGS[kind]
    if original is not None and "original_max_position_embeddings" in (*needed, *optional):
        rope["original_max_position_embeddings"] = original
    problems = [f"{name}: missing; {kind} rotary scaling needs it" for name in needed if name not in rope]
    for name, value in rope.items():
        if name not in (*needed, *optional):
            problems.append(f"{printable(name[:80])}: not known for {kind} rotary scaling")
        elif wanted := _wrong(name, value):
            problems.append(f"{name}: {format_value(value)}; must be {wanted}")
    if not problems:
        problems += _contradictions(rope)
    if problems:
        raise InputError("This rope_scaling cannot be used:", problems)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in rope.items()}
    return RotaryScaling(kind, tuple(sorted(values.items())))


def _contradictions(rope: dict[str, Any]) -> Iterator[str]:
    """Pairs of numbers between which no ramp can lie."""
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        if low in rope and high in rope and rope[low] >= rope[high]:
            yield f"{low}: {rope[low]}; must be below {high} ({rope[high]})"


def write(config: ModelConfig) -> dict[str, Any]:
    """The rotary keys of a config.json, those that every version of transformers reads."""
    written: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        written["rope_scaling"] = _written(config.rope_scaling)
    return written


def write_by_layer(config: ModelConfig) -> dict[str, Any]:
    """What `read_by_layer` reads; the new layout only where the old one cannot say it."""
    local_theta, local = config.local_rope_theta, config.local_rope_scaling
    if local_theta is None:
        local_theta, local = config.rope_theta, config.rope_scaling
    if local is None:
        return {**write(config), "rope_local_base_freq": local_theta}
    return {
        "rope_parameters": {
            kind: {**_written(value), "rope_theta": theta}
            for kind, value, theta in zip(
                LAYER_TYPES, (config.rope_scaling, local), (config.rope_theta, local_theta), strict=True
            )
        }
    }


def _written(value: RotaryScaling | None) -> dict[str, Any]:
    if value is None:
        return {"rope_type": "default"}
    numbers = {name: list(number) if isinstance(number, tuple) else number for name, number in value.values}
    return {"rope_type": value.kind, **numbers}


def given(*values: Any) -> Any:
    """The first value that is not null."""
    return next((value for value in values if value is not None), None)


def theta(value: Any) -> float:
    """A base of rotary positions. Raises InputError for one that is no number above 0."""
    if not _is_number(value):
        raise InputError(f"rope_theta: {format_value(value)}; must be {POSITIVE.description}")
    return float(value)


def _wrong(name: str, value: Any) -> str | None:
    """What a number of a scaling must be, where it is not."""
    if name == "truncate":
        return None if isinstance(value, bool) else "true or false"
    if name in ("short_factor", "long_factor"):
        fine = isinstance(value, list | tuple) and all(_is_number(number) for number in value)
        return None if fine else "a list of numbers above 0"
    if name == "original_max_position_embeddings":
        fine = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= MAX_SIZE
        return None if fine else f"a whole number from 2 to {MAX_SIZE:,}"
    return None if _is_number(value) else POSITIVE.description


def _is_number(value: Any) -> bool:
    return POSITIVE.accepts(value)


def rotary_dim(config: dict[str, Any], default: float, key: str = "partial_rotary_factor") -> int:
    """Channels of a head that turn, from the share that a config.json gives under `key` or in its `rope_parameters`.

    Raises InputError where that share is none, or is said twice and differently.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    said = {f"{key} {config[key]}": config[key]} if config.get(key) is not None else {}
    if rope.get("partial_rotary_factor") is not None:
        said[f"rope_parameters {rope}"] = rope["partial_rotary_factor"]
    factor = next(iter(said.values()), default)
    if len({repr(value) for value in said.values()}) > 1:
        raise InputError(f"{' and '.join(said)}: two shares of each head that turns; leave one of them out.")
    if not SHARE.accepts(factor):
        raise InputError(f"{key}: {format_value(factor)}; must be {SHARE.description}")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    if width >= 2 and width * factor < 2:
        raise InputError(
            f"{key}: {factor}; none of the {width} channels of a head would turn; must be at least 2 of them"
        )
    return int(width * factor)


def partial_factor(config: ModelConfig) -> float:
    """The share of each head that turns, such that `int(head_dim * share)` is `rotary_dim`."""
    turning = config.rotary_dim or config.head_dim
    factor = turning / config.head_dim
    return factor if int(config.head_dim * factor) == turning else math.nextafter(factor, 1.0)
