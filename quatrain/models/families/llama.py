"""Llama (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288): rotary positions, RMSNorm, SwiGLU, grouped heads."""

from __future__ import annotations

from typing import Any

from quatrain.errors import InputError
from quatrain.models.config import ModelConfig
from quatrain.models.families import Family, common_from_hf, common_to_hf, take
from quatrain.models.families.weights import Rename

NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def from_hf(config: dict[str, Any]) -> ModelConfig:
    """A Llama `config.json` as our configuration. Raises InputError naming what is missing or unknown."""
    known: dict[str, Any] = {key: ... for key in NEEDED}
    known |= {
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": None,
        "rope_parameters": None,
        "rope_scaling": None,
    }
    values = take(config, known, {"attention_dropout"}, "llama")
    rope = values["rope_parameters"] or values["rope_scaling"] or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise InputError(f"rope_type: {rope_type!r} is a rotary scaling that Quatrain does not know; known: default.")
    return ModelConfig(
        family="llama",
        **{key: values[key] for key in NEEDED},
        num_key_value_heads=values["num_key_value_heads"] or values["num_attention_heads"],
        head_dim=values["head_dim"] or 0,
        max_position_embeddings=values["max_position_embeddings"],
        rope_theta=float(values["rope_theta"] or rope.get("rope_theta") or 10000.0),
        norm_eps=values["rms_norm_eps"],
        activation=values["hidden_act"],
        attention_bias=values["attention_bias"],
        feed_forward_bias=values["mlp_bias"],
        **common_from_hf(config),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Our configuration as a Llama `config.json`."""
    return common_to_hf(config) | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "rope_theta": config.rope_theta,
    }


_ATTENTION = [
    Rename(f"model.layers.{{n}}.self_attn.{name}", f"layers.{{n}}.self_attn.{name}")
    for name in (
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "o_proj.weight",
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
        "o_proj.bias",
    )
]
_FEED_FORWARD = [
    Rename(f"model.layers.{{n}}.mlp.{name}", f"layers.{{n}}.mlp.{name}")
    for name in (
        "gate_proj.weight",
        "up_proj.weight",
        "down_proj.weight",
        "gate_proj.bias",
        "up_proj.bias",
        "down_proj.bias",
    )
]

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    operations=[
        Rename("model.embed_tokens.weight", "embed_tokens.weight"),
        *_ATTENTION,
        *_FEED_FORWARD,
        Rename("model.layers.{n}.input_layernorm.weight", "layers.{n}.input_layernorm.weight"),
        Rename("model.layers.{n}.post_attention_layernorm.weight", "layers.{n}.post_attention_layernorm.weight"),
        Rename("model.norm.weight", "norm.weight"),
        Rename("lm_head.weight", "lm_head.weight"),
    ],
    ignored=(r".*rotary_emb\.inv_freq",),
)
