"""StableLM 3B and 2 (Bellagente et al. 2024, arXiv 2402.17834): Llama with LayerNorm and rotary positions on a quarter.

The 12B model has parallel sublayers, and normalizes queries and keys with weights of their own for each head.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Operation, PerHead, Rename
from quatrain.models.transformer.config import ModelConfig

OPERATIONS: list[Operation] = [
    *BODY,
    Rename("layers.{n}.input_layernorm.bias", "layers.{n}.input_layernorm.bias"),
    Rename("layers.{n}.post_attention_layernorm.bias", "layers.{n}.post_attention_layernorm.bias"),
    Rename("norm.bias", "norm.bias"),
    PerHead("layers.{n}.self_attn.q_layernorm.norms.{i}.weight", "layers.{n}.self_attn.q_norm.weight", "heads"),
    PerHead("layers.{n}.self_attn.k_layernorm.norms.{i}.weight", "layers.{n}.self_attn.k_norm.weight", "groups"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read(config),
        "rotary_dim": rope.rotary_dim(config, 0.25),
        "num_key_value_heads": key_value_heads(config, 32),
        "attention_bias": "qkv" if config.get("use_qkv_bias") else "none",
        "query_key_norm": "each_head" if config.get("qk_layernorm") else "none",
        "residual": "parallel_shared" if config.get("use_parallel_residual") else "sequential",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "partial_rotary_factor": rope.partial_factor(config),
        "num_key_value_heads": config.num_key_value_heads,
        "use_qkv_bias": config.attention_bias == "qkv",
        "qk_layernorm": config.query_key_norm == "each_head",
        "use_parallel_residual": config.residual == "parallel_shared",
    }


FAMILIES = (
    Family(
        name="stablelm",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 4096),
            Key("layer_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=OPERATIONS,
        heads=heads("StableLm", spans=None),
        fixed={"position": "rotary", "norm": "layer", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout", "hidden_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "use_qkv_bias", "qk_layernorm", "use_parallel_residual"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
