"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): 64 small experts, and norms over all queries and all keys."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.experts import (
    ATTENTION,
    HEAD_NORMS,
    OUTPUT_KEYS,
    SAME_NAMES,
    TRAINING,
    expert_weights,
    experts_of,
    first,
    training_fields,
    training_keys,
)
from quatrain.models.families.llama import CLASSIFIERS, LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "experts": ExpertsConfig(
            num_experts=first(config, 64, "num_experts", "num_local_experts"),
            experts_per_token=first(config, 8, "num_experts_per_tok"),
            intermediate_size=config["intermediate_size"],
            renormalize=bool(config.get("norm_topk_prob")),
            **training_fields(config, 0.01),
        ),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = experts_of(config)
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        "norm_topk_prob": experts.renormalize,
        **training_keys(experts),
    }


FAMILIES = (
    Family(
        name="olmoe",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 4096),
            Key("rms_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=[*ATTENTION, *HEAD_NORMS, *expert_weights(SAME_NAMES)],
        heads=heads("Olmoe", spans=None, without=(*CLASSIFIERS, "token_classification")),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated", "query_key_norm": "whole"},
        required={"clip_qkv": None},
        harmless=frozenset({"attention_dropout"}) | OUTPUT_KEYS,
        read=_read,
        reads=rope.KEYS
        | {
            "num_key_value_heads",
            "attention_bias",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "norm_topk_prob",
            *TRAINING,
        },
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
