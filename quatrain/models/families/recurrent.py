"""What families of recurrent layers share: sizes of a model without attention, and of a new one."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError


def without_attention(kind: str, layers: int) -> dict[str, Any]:
    """The fields of a decoder whose layers are all recurrent."""
    return {"layer_types": (kind,) * layers, "num_attention_heads": 0, "num_key_value_heads": 0, "head_dim": 0}


def recurrent_sizes(sizes: dict[str, Any], width: int) -> dict[str, Any]:
    """The sizes of a transformer whose heads become recurrent ones, `width` channels wide together.

    Raises InputError for sizes that such a model cannot have.
    """
    heads, problems = sizes["num_attention_heads"], []
    if sizes["num_key_value_heads"] != heads:
        problems.append(f"num_key_value_heads: {sizes['num_key_value_heads']}; a model without attention has none")
    if width % heads:
        problems.append(f"num_attention_heads: {heads}; must divide {width}, the width of the recurrent layers")
    if problems:
        raise InputError("This model cannot have this configuration:", problems)
    kept = {name: value for name, value in sizes.items() if name != "rope_theta"}
    return kept | {
        "num_attention_heads": 0,
        "num_key_value_heads": 0,
        "head_dim": 0,
        "recurrent_heads": heads,
        "recurrent_head_dim": width // heads,
    }
