"""SmolLM 3 (Bakouch et al. 2025): Llama whose every fourth layer has no positions (NoPE), with a tied head.

Kazemnejad et al. 2023 (arXiv 2305.19466), Yang et al. 2025 (arXiv 2501.18795) on layers without positions.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.transformer.config import ModelConfig

THETA = 2_000_000.0
"""The default rotary base."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    layers, every = config["num_hidden_layers"], config.get("no_rope_layer_interval") or 4
    rotates = config.get("no_rope_layers")  # Despite its name, 1 marks a layer with rotary positions.
    if rotates is None:
        rotates = [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(rotates) != layers:
        raise InputError(f"no_rope_layers: {len(rotates)} entries; must be num_hidden_layers ({layers}).")
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    kinds = [rope.LAYER_TYPES[window is not None and not flag] for flag in rotates]
    kinds = list(rope.layer_types(config, kinds))
    return {
        **rope.read_whole(config, THETA),
        "num_key_value_heads": key_value_heads(config, 4),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "layers_without_positions": tuple(layer for layer, flag in enumerate(rotates) if not flag),
        "sliding_window": config.get("sliding_window") if "sliding" in kinds else None,
        "layer_types": tuple(kinds),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    bare = config.layers_without_positions
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "no_rope_layers": [int(layer not in bare) for layer in range(config.num_hidden_layers)],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": rope.written_layer_types(config),
    }


FAMILIES = (
    Family(
        name="smollm3",
        keys=(
            *SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 32768),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("mlp_bias", "feed_forward_bias", False),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads=heads("SmolLM3"),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}),
        read=_read,
        reads=rope.KEYS
        | {
            "num_key_value_heads",
            "attention_bias",
            "no_rope_layers",
            "no_rope_layer_interval",
            "use_sliding_window",
            "sliding_window",
            "layer_types",
            "max_window_layers",
        },
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
