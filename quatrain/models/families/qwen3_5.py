"""Qwen 3.5, its dense language models (Qwen Team 2026).

Three of four layers are gated delta nets; the others have attention with a gate on the output of its heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.llama import LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.weights import Operation, Rename, Split
from quatrain.models.transformer.config import ModelConfig

LAYERS = {"linear_attention": "gated_delta", "full_attention": "full"}
"""The types of layers: transformers' names and ours."""
ROTATED = 0.25
"""The rotated share of each head."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    count, interval = config["num_hidden_layers"], config.get("full_attention_interval") or 4
    named = config.get("layer_types")
    if named is None:
        named = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(count)]
    if unknown := sorted({str(kind) for kind in named} - set(LAYERS)):
        raise InputError(f"layer_types: {', '.join(unknown)}; must be one of {', '.join(LAYERS)}.")
    sized = {**config, "head_dim": config.get("head_dim") or 256}
    return {
        **rope.read(config),
        "rotary_dim": rope.rotary_dim(sized, ROTATED),
        "layer_types": tuple(LAYERS[kind] for kind in named),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in LAYERS.items()}
    written = rope.write(config)
    scaling = written.get("rope_scaling", {"rope_type": "default"})
    factor = rope.partial_factor(config)
    return {
        "rope_parameters": scaling | {"rope_theta": config.rope_theta, "partial_rotary_factor": factor},
        "layer_types": [names[kind] for kind in config.layer_types],
    }


def _from_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in sizes.items() if name != "rope_theta"}
    groups = sizes["num_key_value_heads"]
    width = sizes["head_dim"]
    return kept | {
        "recurrent_heads": sizes["num_attention_heads"],
        "recurrent_head_dim": width,
        "recurrent_state_size": width,
        "recurrent_groups": groups,
    }


def _operations(config: ModelConfig) -> list[Operation]:
    """The weights of each layer by its type."""
    attention: list[Operation] = [
        Split(
            "layers.{n}.self_attn.q_proj.weight",
            ("layers.{n}.self_attn.q_proj.weight", "layers.{n}.self_attn.gate_proj.weight"),
            parts="interleaved",
        ),
        *(
            Rename(f"layers.{{n}}.self_attn.{name}.weight", f"layers.{{n}}.self_attn.{name}.weight")
            for name in ("k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
        ),
    ]
    names = {"in_proj_qkv.weight": "qkv_proj.weight", "in_proj_z.weight": "z_proj.weight",
             "in_proj_b.weight": "beta_proj.weight", "in_proj_a.weight": "decay_proj.weight",
             "conv1d.weight": "conv.weight", "out_proj.weight": "o_proj.weight", "norm.weight": "norm.weight",
             "dt_bias": "dt_bias", "A_log": "A_log"}  # fmt: skip
    recurrent: list[Operation] = [
        Rename(f"layers.{{n}}.linear_attn.{theirs}", f"layers.{{n}}.mixer.{ours}") for theirs, ours in names.items()
    ]
    shared = [*(f"mlp.{name}_proj" for name in ("gate", "up", "down")), "input_layernorm", "post_attention_layernorm"]
    every: list[Operation] = [
        *(Rename(f"layers.{{n}}.{name}.weight", f"layers.{{n}}.{name}.weight") for name in shared),
        Rename("embed_tokens.weight", "embed_tokens.weight"),
        Rename("norm.weight", "norm.weight"),
    ]
    for number, kind in enumerate(config.layer_types):
        every += [each.sized(config).at("{n}", number) for each in (attention if kind == "full" else recurrent)]
    return every


def _heads() -> dict[str, Any]:
    """The heads that transformers loads: its classifier has a name of its own."""
    found = heads("Qwen3_5", spans=None)
    del found["token_classification"]  # The class of transformers reads the config.json of the model of images alone.
    images = ("Qwen3_5ForConditionalGeneration",)
    found["causal"] = dataclasses.replace(found["causal"], old_architectures=images)
    for name in ("sequence_classification", "value"):
        found[name] = dataclasses.replace(found[name], architecture="Qwen3_5TextForSequenceClassification")
    for name in ("none", "embedding"):
        found[name] = dataclasses.replace(found[name], architecture="Qwen3_5TextModel")
    return found


FAMILIES = (
    Family(
        name="qwen3_5_text",
        keys=(
            *LAYER_SIZES,
            Key("num_key_value_heads", "num_key_value_heads", 4),
            Key("head_dim", "head_dim", 256),
            Key("max_position_embeddings", "max_position_embeddings", 32768),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
            Key("linear_conv_kernel_dim", "conv_kernel", 4),
            Key("linear_key_head_dim", "recurrent_state_size", 128),
            Key("linear_value_head_dim", "recurrent_head_dim", 128),
            Key("linear_num_key_heads", "recurrent_groups", 16),
            Key("linear_num_value_heads", "recurrent_heads", 32),
        ),
        operations=_operations,
        heads=_heads(),
        fixed={
            "position": "rotary",
            "norm": "rms_offset",
            "feed_forward": "gated",
            "query_key_norm": "head",
            "attention_gate": True,
        },
        required={"attention_bias": False, "attn_output_gate": True},
        harmless=frozenset({"attention_dropout", "mamba_ssm_dtype", "mtp_num_hidden_layers"}),
        read=_read,
        reads=rope.KEYS | {"layer_types", "full_attention_interval"},
        write=_write,
        from_sizes=_from_sizes,
        prefix="model.",
        nested_in={"qwen3_5": "text_config"},
        other_prefixes=("model.language_model.",),
        ignored=(r"(model\.)?mtp\..*", r"model\.visual\..*"),
    ),
)
