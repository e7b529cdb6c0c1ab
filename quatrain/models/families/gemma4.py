"""The text model of Gemma 4 (Gemma Team 2026), dense and with a mixture of experts.

Gemma 3's norms and windows, with plain weights. Full-attention layers have wider heads, of which only the fastest pairs
of channels turn, and may use their keys as values; values are normalized. The last layers may use the keys and values
of earlier ones. The small models embed each token once more for every layer. The mixture adds experts to the dense
network of each layer. From a model that reads images and sound only the text model is loaded, and saved as such.
"""

from __future__ import annotations

import re
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families import rope
from quatrain.models.families.experts import experts_of, first, stacked_weights
from quatrain.models.families.gemma import SANDWICH
from quatrain.models.families.llama import SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig

DENSE_NORMS = {
    "pre_feedforward_layernorm": "mlp.dense_layernorm",
    "post_feedforward_layernorm_1": "mlp.dense_output_layernorm",
    "pre_feedforward_layernorm_2": "mlp.mixture_layernorm",
    "post_feedforward_layernorm_2": "mlp.mixture_output_layernorm",
}
"""The norms of a dense network and of the experts beside it: their names and ours."""


def _full_layers(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes of full-attention layers where they differ: as published, or as transformers 5.23 writes them."""
    kinds = _layer_types(config)
    given = config.get("per_layer_config")
    if given is None:
        groups = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
        return {"full_head_dim": first(config, 512, "global_head_dim"), "full_key_value_heads": groups or 0}
    wanted = {str(layer) for layer, kind in enumerate(kinds) if kind == "full"}
    known, tables = {"head_dim", "num_key_value_heads"}, list(given.values())
    same = all(isinstance(each, dict) and each == tables[0] and set(each) <= known for each in tables)
    if {str(layer) for layer in given} != wanted or not same:
        raise InputError(
            f"per_layer_config: {format_value(given)}; must have the same head_dim and num_key_value_heads for each "
            "layer of full attention, and nothing else."
        )
    sizes = tables[0] if tables else {}
    return {"full_head_dim": sizes.get("head_dim") or 0, "full_key_value_heads": sizes.get("num_key_value_heads") or 0}


def _layer_types(config: dict[str, Any]) -> tuple[str, ...]:
    """Five sliding layers before each with full attention by default; the last one always has full attention."""
    kinds = [rope.LAYER_TYPES[bool((layer + 1) % 6)] for layer in range(config["num_hidden_layers"])]
    return (*rope.layer_types(config, kinds)[:-1], "full")


def _read(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("use_bidirectional_attention") == "all":
        raise InputError("use_bidirectional_attention: 'all' is not supported; must be null or 'vision'.")
    parameters = config.get("rope_parameters") or {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
    }
    fields = {
        **rope.read_by_layer({**config, "rope_parameters": parameters}, 1_000_000.0, 10_000.0),
        **_full_layers(config),
        "num_key_value_heads": first(config, 4, "num_key_value_heads"),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "embedding_scale": config["hidden_size"] ** 0.5,
        "sliding_window": first(config, 512, "sliding_window"),
        "layer_types": _layer_types(config),
        "keys_as_values": bool(config.get("attention_k_eq_v")),
        "shared_kv_layers": first(config, 0, "num_kv_shared_layers"),
        "shared_kv_intermediate_size": 2 * config["intermediate_size"] if config.get("use_double_wide_mlp") else 0,
        "layer_embedding_size": first(config, 256, "hidden_size_per_layer_input"),
        "layer_vocab_size": first(config, 262_144, "vocab_size_per_layer_input"),
        "logit_softcap": config.get("final_logit_softcapping"),
    }
    if config.get("enable_moe_block"):
        fields["experts"] = ExpertsConfig(
            num_experts=first(config, 0, "num_experts"),
            experts_per_token=first(config, 0, "top_k_experts"),
            intermediate_size=first(config, 0, "moe_intermediate_size"),
            beside_dense=True,
        )
    return fields


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = None if config.experts is None else experts_of(config)
    return {
        **rope.write_parameters_by_layer(config),
        "global_head_dim": config.full_head_dim or config.head_dim,
        "num_global_key_value_heads": config.full_key_value_heads or None,
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "sliding_window": config.sliding_window,
        "layer_types": rope.written_layer_types(config),
        "attention_k_eq_v": config.keys_as_values,
        "num_kv_shared_layers": config.shared_kv_layers,
        "use_double_wide_mlp": bool(config.shared_kv_intermediate_size),
        "hidden_size_per_layer_input": config.layer_embedding_size,
        "vocab_size_per_layer_input": config.layer_vocab_size or config.vocab_size,
        "final_logit_softcapping": config.logit_softcap,
        "enable_moe_block": experts is not None,
        "num_experts": None if experts is None else experts.num_experts,
        "top_k_experts": None if experts is None else experts.experts_per_token,
        "moe_intermediate_size": None if experts is None else experts.intermediate_size,
    }


def _from_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    """A new model: heads twice as wide in full-attention layers, and second embeddings of an eighth of the width."""
    added = {
        "full_head_dim": 2 * sizes["head_dim"],
        "layer_embedding_size": max(2, sizes["hidden_size"] // 8),
        "layer_vocab_size": sizes["vocab_size"],
    }
    return added | sizes


def _operations(config: ModelConfig) -> list[Operation]:
    """The weights of the body; with experts the dense network has another place in the block."""
    body = [
        *SANDWICH,
        *(Rename(f"layers.{{n}}.self_attn.{name}.weight", f"layers.{{n}}.self_attn.{name}.weight")
          for name in ("q_norm", "k_norm")),
        Rename("layers.{n}.layer_scalar", "layers.{n}.layer_scalar"),
        Rename("layers.{n}.per_layer_input_gate.weight", "layers.{n}.layer_input.gate.weight"),
        Rename("layers.{n}.per_layer_projection.weight", "layers.{n}.layer_input.out.weight"),
        Rename("layers.{n}.post_per_layer_input_norm.weight", "layers.{n}.layer_input.norm.weight"),
        Rename("embed_tokens_per_layer.weight", "layer_embedding.table.weight"),
        Rename("per_layer_model_projection.weight", "layer_embedding.projection.weight"),
        Rename("per_layer_projection_norm.weight", "layer_embedding.norm.weight"),
    ]  # fmt: skip
    if config.experts is None:
        return body
    moved = [
        each
        for each in body
        if ".mlp." not in each.sources[0] and each.sources[0] != "layers.{n}.pre_feedforward_layernorm.weight"
    ]
    router = {"proj.weight": "weight", "scale": "scale", "per_expert_scale": "expert_scale"}
    names = ("gate_proj", "up_proj", "down_proj")
    return [
        *moved,
        *(Rename(f"layers.{{n}}.mlp.{name}.weight", f"layers.{{n}}.mlp.dense.{name}.weight") for name in names),
        *(Rename(f"layers.{{n}}.{theirs}.weight", f"layers.{{n}}.{ours}.weight")
          for theirs, ours in DENSE_NORMS.items()),
        *(Rename(f"layers.{{n}}.router.{theirs}", f"layers.{{n}}.mlp.mixture.gate.{ours}")
          for theirs, ours in router.items()),
        *stacked_weights({"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}, "experts",
                         "mlp.mixture"),
    ]  # fmt: skip


def _is_unused(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of the files is a projection of keys or values in a layer that uses those of another."""
    found = re.match(r"(?:model\.)?(?:language_model\.)?layers\.(\d+)\.self_attn\.(?:[kv]_proj|[kv]_norm)\.", name)
    return (
        found is not None and (layer := int(found[1])) < config.num_hidden_layers and config.kv_source(layer) != layer
    )


def _heads() -> dict[str, Head]:
    """transformers has the language model and the body alone."""
    named = heads("Gemma4", spans=None, without=("sequence_classification", "value", "token_classification"))
    images = ("Gemma4ForConditionalGeneration",)
    return {
        "causal": Head("Gemma4ForCausalLM", named["causal"].operations, old_architectures=images),
        "none": Head("Gemma4TextModel", prefix=""),
        "embedding": Head("Gemma4TextModel", prefix=""),
    }


FAMILIES = (
    Family(
        name="gemma4_text",
        keys=(
            *(key for key in SIZES if key.theirs not in ("head_dim", "num_key_value_heads")),
            Key("head_dim", "head_dim", 256),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_activation", "activation", "gelu_pytorch_tanh", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
            Key("max_position_embeddings", "max_position_embeddings", 131_072),
        ),
        operations=_operations,
        heads=_heads(),
        fixed={
            "position": "rotary",
            "norm": "rms",
            "norm_position": "sandwich",
            "feed_forward": "gated",
            "query_key_norm": "head",
            "value_norm": True,
            "layer_scale": True,
            "attention_scale": 1.0,
        },
        harmless=frozenset({"attention_dropout", "hidden_act", "cache_implementation", "use_bidirectional_attention"}),
        read=_read,
        reads=rope.KEYS
        | {
            "global_head_dim",
            "num_global_key_value_heads",
            "per_layer_config",
            "num_key_value_heads",
            "attention_bias",
            "sliding_window",
            "layer_types",
            "attention_k_eq_v",
            "num_kv_shared_layers",
            "use_double_wide_mlp",
            "hidden_size_per_layer_input",
            "vocab_size_per_layer_input",
            "final_logit_softcapping",
            "enable_moe_block",
            "num_experts",
            "top_k_experts",
            "moe_intermediate_size",
        },
        write=_write,
        from_sizes=_from_sizes,
        prefix="model.",
        nested_in={"gemma4": "text_config"},
        other_prefixes=("model.language_model.", "language_model.model."),
        aliases={"language_model.lm_head.weight": "lm_head.weight"},
        ignored=(r".*rotary_emb\..*", r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\..*"),
        kept=_is_unused,
    ),
)
