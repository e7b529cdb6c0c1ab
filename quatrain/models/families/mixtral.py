"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts, two of eight for each token."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.experts import (
    ATTENTION,
    OUTPUT_KEYS,
    TRAINING,
    expert_weights,
    experts_of,
    first,
    training_fields,
    training_keys,
)
from quatrain.models.families.llama import SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config, 1e6),
        "num_key_value_heads": key_value_heads(config, 8),
        "sliding_window": config.get("sliding_window"),
        "experts": ExpertsConfig(
            num_experts=first(config, 8, "num_local_experts", "num_experts"),
            experts_per_token=first(config, 2, "num_experts_per_tok"),
            intermediate_size=config["intermediate_size"],
            **training_fields(config, 0.001),
        ),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = experts_of(config)
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        **training_keys(experts),
    }


FAMILIES = (
    Family(
        name="mixtral",
        keys=(
            *SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 131072),
            Key("rms_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=[
            *ATTENTION,
            *expert_weights({"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}, "block_sparse_moe"),
        ],
        heads=heads("Mixtral", spans="model."),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}) | OUTPUT_KEYS,
        read=_read,
        reads=rope.KEYS
        | {"num_key_value_heads", "sliding_window", "num_local_experts", "num_experts", "num_experts_per_tok"}
        | set(TRAINING),
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
