"""Qwen2 and 2.5 (Yang et al. 2024, arXiv 2407.10671 and 2412.15115), Qwen3 (Yang et al. 2025, arXiv 2505.09388).

Llama with biases of queries, keys and values (Qwen2), or with normalized queries and keys of each head (Qwen3). The
last layers may use sliding-window attention.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.config import ModelConfig


def _layers(config: dict[str, Any]) -> dict[str, Any]:
    """The sliding-window layers; without use_sliding_window there are none, even if other keys are set."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28) if window is not None else config["num_hidden_layers"]
    kinds = [rope.LAYER_TYPES[layer >= first] for layer in range(config["num_hidden_layers"])]
    return {"sliding_window": window, "layer_types": rope.layer_types(config, kinds)}


def _read2(config: dict[str, Any]) -> dict[str, Any]:
    return {**rope.read_whole(config), **_layers(config), "num_key_value_heads": key_value_heads(config, 32)}


def _read3(config: dict[str, Any]) -> dict[str, Any]:
    return {**_read2(config), "attention_bias": "all" if config.get("attention_bias") else "none"}


def _write2(config: ModelConfig) -> dict[str, Any]:
    full = next((n for n, kind in enumerate(config.layer_types) if kind == "sliding"), config.num_hidden_layers)
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": full,
        "layer_types": rope.written_layer_types(config),
    }


def _write3(config: ModelConfig) -> dict[str, Any]:
    return {**_write2(config), "attention_bias": config.attention_bias == "all"}


KEYS = (
    *(key for key in SIZES if key.theirs != "head_dim"),
    Key("max_position_embeddings", "max_position_embeddings", 32768),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("hidden_act", "activation", "silu", ACTIVATIONS),
    Key("tie_word_embeddings", "tie_word_embeddings", False),
)
READS = rope.KEYS | {
    "num_key_value_heads",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
}

FAMILIES = (
    Family(
        name="qwen2",
        keys=(*KEYS, Key("head_dim", "head_dim", 0)),
        operations=BODY,
        heads=heads("Qwen2"),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated", "attention_bias": "qkv"},
        harmless=frozenset({"attention_dropout"}),
        read=_read2,
        reads=READS,
        write=_write2,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
    Family(
        name="qwen3",
        keys=(*KEYS, Key("head_dim", "head_dim", 128)),
        operations=[
            *BODY,
            Rename("layers.{n}.self_attn.q_norm.weight", "layers.{n}.self_attn.q_norm.weight"),
            Rename("layers.{n}.self_attn.k_norm.weight", "layers.{n}.self_attn.k_norm.weight"),
        ],
        heads=heads("Qwen3"),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated", "query_key_norm": "head"},
        harmless=frozenset({"attention_dropout"}),
        read=_read3,
        reads=READS | {"attention_bias"},
        write=_write3,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
