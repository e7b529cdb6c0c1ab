"""OLMo 2 (Walsh et al. 2024, arXiv 2501.00656) and OLMo 3 (Olmo Team 2025, arXiv 2512.13961).

Norms on the output of attention and feed-forward instead of their input; all queries of a token normalized together,
and all keys. In OLMo 3 three of four layers have sliding-window attention; YaRN applies to the full layers alone.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Operation, Rename
from quatrain.models.transformer.config import ModelConfig

THETA = 500_000.0
"""The default rotary base of OLMo 3."""

NORMS = {
    "post_attention_layernorm": "attention_output_layernorm",
    "post_feedforward_layernorm": "feed_forward_output_layernorm",
    "self_attn.q_norm": "self_attn.q_norm",
    "self_attn.k_norm": "self_attn.k_norm",
}

OPERATIONS: list[Operation] = [
    *(operation for operation in BODY if "layernorm" not in operation.sources[0]),
    *(Rename(f"layers.{{n}}.{theirs}.weight", f"layers.{{n}}.{ours}.weight") for theirs, ours in NORMS.items()),
]

KEYS = (
    *LAYER_SIZES,
    Key("max_position_embeddings", "max_position_embeddings", 2048),
    Key("rms_norm_eps", "norm_eps", 1e-5),
    Key("hidden_act", "activation", "silu", ACTIVATIONS),
    Key("tie_word_embeddings", "tie_word_embeddings", False),
)

FIXED = {
    "position": "rotary",
    "norm": "rms",
    "norm_position": "output",
    "query_key_norm": "whole",
    "feed_forward": "gated",
}


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_key_value_heads": key_value_heads(config),
        "attention_bias": "all" if config.get("attention_bias") else "none",
    }


def _read2(config: dict[str, Any]) -> dict[str, Any]:
    return {**rope.read_whole(config), **_shared(config)}


def _write2(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
    }


def _read3(config: dict[str, Any]) -> dict[str, Any]:
    kinds = [rope.LAYER_TYPES[bool((layer + 1) % 4)] for layer in range(config["num_hidden_layers"])]
    return {
        **rope.read_by_layer(config, THETA, THETA),
        **_shared(config),
        "sliding_window": config.get("sliding_window", 4096),
        "layer_types": rope.layer_types(config, kinds),
    }


def _write3(config: ModelConfig) -> dict[str, Any]:
    is_old_layout = config.local_rope_theta == THETA and config.local_rope_scaling is None
    return {
        **_write2(config),
        **({} if is_old_layout else {"rope_theta": None, "rope_scaling": None}),
        **({} if is_old_layout else rope.write_parameters_by_layer(config)),
        "sliding_window": config.sliding_window,
        "layer_types": rope.written_layer_types(config),
    }


FAMILIES = (
    Family(
        name="olmo2",
        keys=KEYS,
        operations=OPERATIONS,
        heads=heads("Olmo2", spans=None, without=("token_classification",)),
        fixed=FIXED,
        harmless=frozenset({"attention_dropout"}),
        read=_read2,
        reads=rope.KEYS | {"num_key_value_heads", "attention_bias"},
        write=_write2,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
    Family(
        name="olmo3",
        keys=KEYS,
        operations=OPERATIONS,
        heads=heads("Olmo3", spans=None, without=("token_classification",)),
        fixed=FIXED,
        harmless=frozenset({"attention_dropout"}),
        read=_read3,
        reads=rope.KEYS | {"num_key_value_heads", "attention_bias", "sliding_window", "layer_types"},
        write=_write3,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
