"""The rotary keys of a config.json, in their old and their new layout."""

from __future__ import annotations

from typing import Any

from quatrain.errors import InputError
from quatrain.models.config import ModelConfig, RotaryScaling

KEYS = frozenset({"rope_theta", "rope_parameters", "rope_scaling"})

SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
}
"""The numbers that each kind of scaling needs, and those that it may have."""


def read(config: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from a config.json. Raises InputError for a scaling that is not known."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(config.get("rope_theta") or rope.pop("rope_theta", None) or default_theta)
    return {"rope_theta": theta, "rope_scaling": scaling(rope)}


def scaling(rope: dict[str, Any]) -> RotaryScaling | None:
    """A `rope_scaling` object as ours; None for the plain one."""
    rope = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if kind in (None, "default"):
        return None
    if kind not in SCALINGS:
        raise InputError(
            f"rope_type: {kind!r} is a rotary scaling that Quatrain does not know; known: default, {', '.join(SCALINGS)}."
        )
    needed, optional = SCALINGS[kind]
    problems = [f"{name}: missing; {kind} rotary scaling needs it" for name in needed if rope.get(name) is None]
    problems += [f"{name}: not known for {kind} rotary scaling" for name in rope if name not in (*needed, *optional)]
    if problems:
        raise InputError("This rope_scaling cannot be used:", problems)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in rope.items()}
    return RotaryScaling(kind, tuple(sorted(values.items())))


def write(config: ModelConfig) -> dict[str, Any]:
    """The rotary keys of a config.json, those that every version of transformers reads."""
    written: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        values = {
            name: list(value) if isinstance(value, tuple) else value for name, value in config.rope_scaling.values
        }
        written["rope_scaling"] = {"rope_type": config.rope_scaling.kind, **values}
    return written
