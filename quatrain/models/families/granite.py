"""Granite 3 and 4 dense (Granite Team 2024): Llama with factors on embeddings, attention, residuals and logits.

The factors transfer hyperparameters between widths (Yang et al. 2022, arXiv 2203.03466).
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, CLASSIFIERS, SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.transformer.config import ModelConfig


def _read(config: dict[str, Any]) -> dict[str, Any]:
    scale, divisor = config.get("attention_multiplier"), config.get("logits_scaling")
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "attention_scale": 1.0 if scale is None else float(scale),
        "logit_scale": 1.0 if divisor is None else 1.0 / divisor,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "attention_multiplier": config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        "logits_scaling": 1.0 / config.logit_scale,
    }


FAMILIES = (
    Family(
        name="granite",
        keys=(
            *SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("mlp_bias", "feed_forward_bias", False),
            Key("embedding_multiplier", "embedding_scale", 1.0),
            Key("residual_multiplier", "residual_scale", 1.0),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads=heads("Granite", spans=None, without=(*CLASSIFIERS, "token_classification")),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "attention_bias", "attention_multiplier", "logits_scaling"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
