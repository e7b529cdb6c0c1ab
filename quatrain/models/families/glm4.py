"""GLM-4 0414 (Zeng et al. 2024, arXiv 2406.12793): Llama with norms before and after each sublayer.

Adjacent channels of half of each head are rotated; queries, keys and values have biases.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Operation, Rename, Split
from quatrain.models.transformer.config import ModelConfig

NORMS = {
    "post_self_attn_layernorm": "attention_output_layernorm",
    "post_mlp_layernorm": "feed_forward_output_layernorm",
}

OPERATIONS: list[Operation] = [
    *(op for op in BODY if "gate_proj" not in op.sources[0] and "up_proj" not in op.sources[0]),
    Split("layers.{n}.mlp.gate_up_proj.weight", ("layers.{n}.mlp.gate_proj.weight", "layers.{n}.mlp.up_proj.weight")),
    *(Rename(f"layers.{{n}}.{theirs}.weight", f"layers.{{n}}.{ours}.weight") for theirs, ours in NORMS.items()),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read(config),
        "rotary_dim": rope.rotary_dim({"head_dim": 128, **config}, 0.5),
        "num_key_value_heads": key_value_heads(config, 2),
        "attention_bias": "none" if config.get("attention_bias") is False else "qkv",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "partial_rotary_factor": rope.partial_factor(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "qkv",
    }


FAMILIES = (
    Family(
        name="glm4",
        keys=(
            *LAYER_SIZES,
            Key("head_dim", "head_dim", 128),
            Key("max_position_embeddings", "max_position_embeddings", 131072),
            Key("rms_norm_eps", "norm_eps", 1.5625e-07),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=OPERATIONS,
        heads=heads("Glm4", spans=None),
        fixed={
            "position": "rotary",
            "rotary_layout": "interleaved",
            "norm": "rms",
            "norm_position": "sandwich",
            "feed_forward": "gated",
        },
        harmless=frozenset({"attention_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "attention_bias"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
