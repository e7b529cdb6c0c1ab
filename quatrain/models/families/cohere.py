"""Cohere 2 (Command R7B, Command A: Cohere Team 2025, arXiv 2504.00698): parallel attention and feed-forward.

One LayerNorm without bias for both branches; sliding-window layers with rotary positions of adjacent channels; every
fourth layer has full attention without positions.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, CLASSIFIERS, LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.transformer.config import ModelConfig


def _read(config: dict[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, width):
        raise InputError(f"head_dim: {config['head_dim']}; must be hidden_size / num_attention_heads ({width}).")
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 4
    kinds = [rope.LAYER_TYPES[bool((layer + 1) % every)] for layer in range(config["num_hidden_layers"])]
    named = rope.layer_types(config, kinds)
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "sliding_window": config.get("sliding_window", 4096),
        "layer_types": named,
        "layers_without_positions": tuple(layer for layer, kind in enumerate(named) if kind == "full"),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "sliding_window": config.sliding_window,
        "layer_types": rope.written_layer_types(config),
    }


FAMILIES = (
    Family(
        name="cohere2",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 8192),
            Key("layer_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("logit_scale", "logit_scale", 0.0625),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=[op for op in BODY if "post_attention_layernorm" not in op.sources[0]],
        heads=heads("Cohere2", spans=None, without=(*CLASSIFIERS, "token_classification")),
        fixed={
            "position": "rotary",
            "rotary_layout": "interleaved",
            "norm": "layer_without_bias",
            "residual": "parallel_shared",
            "feed_forward": "gated",
        },
        required={"use_qk_norm": False, "position_embedding_type": "rope_gptj", "rotary_pct": 1.0},
        harmless=frozenset({"attention_dropout", "sliding_window_pattern", "_sliding_window_pattern"}),
        read=_read,
        reads=rope.KEYS
        | {
            "num_key_value_heads",
            "attention_bias",
            "sliding_window",
            "layer_types",
            "sliding_window_pattern",
            "head_dim",
        },
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
