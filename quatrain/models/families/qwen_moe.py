"""Qwen2-MoE (Qwen1.5-MoE-A2.7B; Yang et al. 2024, arXiv 2407.10671) and Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388).

Qwen2 and Qwen3 with many small experts. Qwen2-MoE has a shared expert with a gate. Some layers may have a plain
feed-forward network: those in `mlp_only_layers`, and those that `decoder_sparse_step` does not divide.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.experts import (
    ATTENTION,
    DENSE,
    HEAD_NORMS,
    OUTPUT_KEYS,
    SAME_NAMES,
    TRAINING,
    expert_weights,
    experts_of,
    first,
    shared_weights,
    training_fields,
    training_keys,
)
from quatrain.models.families.llama import SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Rename
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig


def _read(config: dict[str, Any], *, experts: int, used: int, width: int, shared: int) -> dict[str, Any]:
    """The fields of both; `shared` is the default width of the shared expert, 0 without one."""
    layers = config["num_hidden_layers"]
    step, dense = first(config, 1, "decoder_sparse_step"), first(config, [], "mlp_only_layers")
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config, 4 if not shared else 16),
        "experts": ExpertsConfig(
            num_experts=first(config, experts, "num_experts", "num_local_experts"),
            experts_per_token=first(config, used, "num_experts_per_tok"),
            intermediate_size=first(config, width, "moe_intermediate_size"),
            renormalize=bool(config.get("norm_topk_prob")),
            shared_intermediate_size=first(config, shared, "shared_expert_intermediate_size"),
            shared_gate=bool(shared),
            dense_layers=tuple(layer for layer in range(layers) if layer in dense or (layer + 1) % step),
            **training_fields(config, 0.001),
        ),
    }


def _read2(config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    window = first(config, 4096, "sliding_window") if config.get("use_sliding_window") else None
    last = first(config, 28, "max_window_layers") if window is not None else 0
    kinds = [rope.LAYER_TYPES[layer < last and layer % 2 == 0] for layer in range(layers)]
    return {
        **_read(config, experts=60, used=4, width=1408, shared=5632),
        "sliding_window": window,
        "layer_types": rope.layer_types(config, kinds),
        "attention_bias": "qkv" if first(config, True, "qkv_bias") else "none",
    }


def _read3(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **_read(config, experts=128, used=8, width=768, shared=0),
        "sliding_window": first(config, 4096, "sliding_window") if config.get("use_sliding_window") else None,
        "attention_bias": "all" if config.get("attention_bias") else "none",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = experts_of(config)
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        "moe_intermediate_size": experts.intermediate_size,
        "norm_topk_prob": experts.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
        **training_keys(experts),
    }


def _write2(config: ModelConfig) -> dict[str, Any]:
    return {
        **_write(config),
        "layer_types": rope.written_layer_types(config),
        "shared_expert_intermediate_size": experts_of(config).shared_intermediate_size,
        "qkv_bias": config.attention_bias == "qkv",
    }


def _write3(config: ModelConfig) -> dict[str, Any]:
    return {**_write(config), "attention_bias": config.attention_bias == "all"}


KEYS = (
    *(key for key in SIZES if key.theirs != "head_dim"),
    Key("max_position_embeddings", "max_position_embeddings", 32768),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("hidden_act", "activation", "silu", ACTIVATIONS),
    Key("tie_word_embeddings", "tie_word_embeddings", False),
    Key("head_dim", "head_dim", 0),
)
READS = rope.KEYS | {
    "num_key_value_heads",
    "use_sliding_window",
    "sliding_window",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    *TRAINING,
}
HARMLESS = frozenset({"attention_dropout"}) | OUTPUT_KEYS

FAMILIES = (
    Family(
        name="qwen2_moe",
        keys=KEYS,
        operations=[
            *ATTENTION,
            *DENSE,
            *expert_weights(SAME_NAMES),
            *shared_weights("shared_expert"),
            Rename("layers.{n}.mlp.shared_expert_gate.weight", "layers.{n}.mlp.shared_expert_gate.weight"),
        ],
        heads=heads("Qwen2Moe", spans="model."),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=HARMLESS,
        read=_read2,
        reads=READS | {"layer_types", "max_window_layers", "shared_expert_intermediate_size", "qkv_bias"},
        write=_write2,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
    Family(
        name="qwen3_moe",
        keys=KEYS,
        operations=[*ATTENTION, *HEAD_NORMS, *DENSE, *expert_weights(SAME_NAMES)],
        heads=heads("Qwen3Moe", spans="model."),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated", "query_key_norm": "head"},
        harmless=HARMLESS,
        read=_read3,
        reads=READS | {"attention_bias", "max_window_layers"},
        write=_write3,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
