"""Granite MoE (Granite Team 2024, Granite 3.0): Granite with a mixture of experts.

Its factors scale embedding, attention, residuals and logits.
The files store all experts of a layer as one tensor.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.experts import (
    ATTENTION,
    OUTPUT_KEYS,
    TRAINING,
    experts_of,
    first,
    stacked_weights,
    training_fields,
    training_keys,
)
from quatrain.models.families.llama import CLASSIFIERS, LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "attention_scale": float(first(config, 1.0, "attention_multiplier")),
        "logit_scale": 1.0 / float(first(config, 1.0, "logits_scaling")),
        "experts": ExpertsConfig(
            num_experts=first(config, 8, "num_local_experts"),
            experts_per_token=first(config, 2, "num_experts_per_tok"),
            intermediate_size=config["intermediate_size"],
            router="softmax_of_chosen",
            **training_fields(config, 0.001),
        ),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = experts_of(config)
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "attention_multiplier": config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        "logits_scaling": 1.0 / config.logit_scale,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        **training_keys(experts),
    }


FAMILIES = (
    Family(
        name="granitemoe",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("embedding_multiplier", "embedding_scale", 1.0),
            Key("residual_multiplier", "residual_scale", 1.0),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=[
            *ATTENTION,
            Rename("layers.{n}.block_sparse_moe.router.layer.weight", "layers.{n}.mlp.gate.weight"),
            *stacked_weights(
                {"input_linear.weight": ("gate_proj", "up_proj"), "output_linear.weight": ("down_proj",)},
                "block_sparse_moe",
            ),
        ],
        heads=heads("GraniteMoe", spans=None, without=(*CLASSIFIERS, "token_classification")),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}) | OUTPUT_KEYS,
        read=_read,
        reads=rope.KEYS
        | {
            "num_key_value_heads",
            "attention_bias",
            "attention_multiplier",
            "logits_scaling",
            "num_local_experts",
            "num_experts_per_tok",
            *TRAINING,
        },
        write=_write,
        prefix="model.",
    ),
)
