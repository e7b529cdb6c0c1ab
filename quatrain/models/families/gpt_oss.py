"""GPT-OSS (Agarwal et al. 2025, arXiv 2508.10925): experts with biases and a clamped SwiGLU, attention sinks, sliding
windows in every other layer.

The files store the experts of a layer as one tensor, in OpenAI's own as MXFP4 (`quatrain.compression.mxfp4`).
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
    training_fields,
    training_keys,
)
from quatrain.models.families.llama import SIZES, heads
from quatrain.models.families.mapping import Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Operation, Rename, Stacked, renames
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig

ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""The rotary scaling of a config.json that has none."""

THETA = 150_000.0


def _read(config: dict[str, Any]) -> dict[str, Any]:
    kinds = [rope.LAYER_TYPES[layer % 2 == 0] for layer in range(config["num_hidden_layers"])]
    scaled = config.get("rope_scaling") or config.get("rope_parameters")
    return {
        **rope.read_whole(config if scaled else {**config, "rope_scaling": ROPE}, THETA),
        "num_key_value_heads": key_value_heads(config, 8),
        "sliding_window": config.get("sliding_window", 128),
        "layer_types": rope.layer_types(config, kinds),
        "attention_bias": "all" if first(config, True, "attention_bias") else "none",
        "experts": ExpertsConfig(
            num_experts=first(config, 128, "num_local_experts", "num_experts"),
            experts_per_token=first(config, 4, "num_experts_per_tok", "experts_per_token"),
            intermediate_size=config["intermediate_size"],
            router="softmax_of_chosen",
            bias=True,
            clamp=float(first(config, 7.0, "swiglu_limit")),
            **training_fields(config, 0.001),
        ),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = experts_of(config)
    written = rope.write(config)
    if config.rope_scaling is None:
        written = {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    return {
        **written,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "layer_types": rope.written_layer_types(config),
        "attention_bias": config.attention_bias == "all",
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        "swiglu_limit": experts.clamp,
        **training_keys(experts),
    }


def _experts() -> list[Operation]:
    theirs, ours = "layers.{n}.mlp.experts", "layers.{n}.mlp.experts.{x}"
    both = ("gate_proj", "up_proj")
    return [
        *renames("layers.{n}.mlp.router", "layers.{n}.mlp.gate"),
        Stacked(f"{theirs}.gate_up_proj", tuple(f"{ours}.{name}.weight" for name in both), True, True),
        Stacked(f"{theirs}.gate_up_proj_bias", tuple(f"{ours}.{name}.bias" for name in both), interleaved=True),
        Stacked(f"{theirs}.down_proj", (f"{ours}.down_proj.weight",), True),
        Stacked(f"{theirs}.down_proj_bias", (f"{ours}.down_proj.bias",)),
    ]


FAMILIES = (
    Family(
        name="gpt_oss",
        keys=(
            *(key for key in SIZES if key.theirs != "head_dim"),
            Key("head_dim", "head_dim", 64),
            Key("max_position_embeddings", "max_position_embeddings", 131072),
            Key("rms_norm_eps", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=[
            *ATTENTION,
            Rename("layers.{n}.self_attn.sinks", "layers.{n}.self_attn.sinks"),
            *_experts(),
        ],
        heads=heads("GptOss", spans=None),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated", "attention_sinks": True},
        required={"hidden_act": "silu", "swiglu_alpha": 1.702},
        harmless=frozenset({"attention_dropout", "initial_context_length"}) | OUTPUT_KEYS,
        read=_read,
        reads=rope.KEYS
        | {
            "num_key_value_heads",
            "sliding_window",
            "layer_types",
            "attention_bias",
            "num_local_experts",
            "num_experts",
            "num_experts_per_tok",
            "experts_per_token",
            "swiglu_limit",
            *TRAINING,
        },
        write=_write,
        prefix="model.",
    ),
)
