"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, fused (in, out) projections in its files."""

from __future__ import annotations

from typing import Any

from quatrain.errors import InputError
from quatrain.models.config import ModelConfig
from quatrain.models.families import Family, common_from_hf, common_to_hf, take
from quatrain.models.families.weights import Rename, Split

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
HARMLESS = {
    "n_ctx",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    *DROPOUTS,
}


def from_hf(config: dict[str, Any]) -> ModelConfig:
    """A GPT-2 `config.json` as our configuration. Raises InputError naming what is missing or unknown.

    The dropout rates of the file are written back but not used: training says its own (`train.dropout`).
    """
    known: dict[str, Any] = {key: ... for key in ("vocab_size", "n_embd", "n_layer", "n_head")}
    known |= {
        "n_positions": 1024,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
    }
    values = take(config, known, HARMLESS, "gpt2")
    problems = []
    if values["activation_function"] not in ACTIVATIONS:
        problems.append(
            f"activation_function: {values['activation_function']!r}; must be one of {', '.join(ACTIVATIONS)}"
        )
    if values["scale_attn_weights"] is not True:
        problems.append("scale_attn_weights: False is an option that Quatrain does not know; must be true")
    if problems:
        raise InputError("This gpt2 config.json cannot be used:", problems)
    common = common_from_hf(config) | {"tie_word_embeddings": bool(config.get("tie_word_embeddings", True))}
    extra = {key: config[key] for key in DROPOUTS if key in config} | {
        "activation_function": values["activation_function"]
    }
    return ModelConfig(
        family="gpt2",
        vocab_size=values["vocab_size"],
        hidden_size=values["n_embd"],
        intermediate_size=values["n_inner"] or 4 * values["n_embd"],
        num_hidden_layers=values["n_layer"],
        num_attention_heads=values["n_head"],
        num_key_value_heads=values["n_head"],
        max_position_embeddings=values["n_positions"],
        position="learned",
        norm="layer",
        norm_eps=values["layer_norm_epsilon"],
        feed_forward="plain",
        activation=ACTIVATIONS[values["activation_function"]],
        attention_bias=True,
        feed_forward_bias=True,
        extra=extra,
        **common,
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Our configuration as a GPT-2 `config.json`."""
    names = {"gelu_tanh": "gelu_new"}
    rates = {key: config.extra.get(key, 0.0) for key in DROPOUTS}
    return (
        common_to_hf(config)
        | rates
        | {
            "n_embd": config.hidden_size,
            "n_inner": config.intermediate_size,
            "n_layer": config.num_hidden_layers,
            "n_head": config.num_attention_heads,
            "n_positions": config.max_position_embeddings,
            "activation_function": config.extra.get(
                "activation_function", names.get(config.activation, config.activation)
            ),
            "layer_norm_epsilon": config.norm_eps,
        }
    )


def _projections(kind: str) -> tuple[str, ...]:
    return tuple(f"layers.{{n}}.self_attn.{name}_proj.{kind}" for name in "qkv")


FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    from_hf=from_hf,
    to_hf=to_hf,
    operations=[
        Rename("transformer.wte.weight", "embed_tokens.weight"),
        Rename("transformer.wpe.weight", "embed_positions.weight"),
        Rename("transformer.h.{n}.ln_1.weight", "layers.{n}.input_layernorm.weight"),
        Rename("transformer.h.{n}.ln_1.bias", "layers.{n}.input_layernorm.bias"),
        Split("transformer.h.{n}.attn.c_attn.weight", _projections("weight"), transpose=True),
        Split("transformer.h.{n}.attn.c_attn.bias", _projections("bias")),
        Rename("transformer.h.{n}.attn.c_proj.weight", "layers.{n}.self_attn.o_proj.weight", transpose=True),
        Rename("transformer.h.{n}.attn.c_proj.bias", "layers.{n}.self_attn.o_proj.bias"),
        Rename("transformer.h.{n}.ln_2.weight", "layers.{n}.post_attention_layernorm.weight"),
        Rename("transformer.h.{n}.ln_2.bias", "layers.{n}.post_attention_layernorm.bias"),
        Rename("transformer.h.{n}.mlp.c_fc.weight", "layers.{n}.mlp.up_proj.weight", transpose=True),
        Rename("transformer.h.{n}.mlp.c_fc.bias", "layers.{n}.mlp.up_proj.bias"),
        Rename("transformer.h.{n}.mlp.c_proj.weight", "layers.{n}.mlp.down_proj.weight", transpose=True),
        Rename("transformer.h.{n}.mlp.c_proj.bias", "layers.{n}.mlp.down_proj.bias"),
        Rename("transformer.ln_f.weight", "norm.weight"),
        Rename("transformer.ln_f.bias", "norm.bias"),
        Rename("lm_head.weight", "lm_head.weight"),
    ],
    prefix="transformer.",
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)
