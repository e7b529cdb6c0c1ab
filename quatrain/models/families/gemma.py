"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118) and the text model of Gemma 3 (Gemma Team 2025, arXiv 2503.19786).

Norms before and after each sublayer, with 1 + weight; embeddings scaled by the square root of their width; alternating
full and sliding-window layers. Gemma 2 has soft caps; Gemma 3 has normalized queries and keys of each head, and a
rotary base for each type of layer. From a Gemma 3 that reads images only the text model is loaded, and saved as such. A
bidirectional Gemma 3 (EmbeddingGemma, arXiv 2509.20354) is an encoder.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Operation, Rename
from quatrain.models.transformer.config import ModelConfig

NORMS = {
    "post_attention_layernorm": "attention_output_layernorm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "feed_forward_output_layernorm",
}
"""The norms around the sublayers of a layer: their names and ours."""

SANDWICH: list[Operation] = [
    *(operation for operation in BODY if "post_attention_layernorm" not in operation.sources[0]),
    *(Rename(f"layers.{{n}}.{theirs}.weight", f"layers.{{n}}.{ours}.weight") for theirs, ours in NORMS.items()),
]

KEYS = (
    *(key for key in SIZES if key.theirs != "head_dim"),
    Key("head_dim", "head_dim", 256),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("hidden_activation", "activation", "gelu_pytorch_tanh", ACTIVATIONS),
    Key("tie_word_embeddings", "tie_word_embeddings", True),
)

FIXED = {"position": "rotary", "norm": "rms_offset", "norm_position": "sandwich", "feed_forward": "gated"}

READS = rope.KEYS | {
    "num_key_value_heads",
    "attention_bias",
    "query_pre_attn_scalar",
    "sliding_window",
    "layer_types",
    "final_logit_softcapping",
}

HARMLESS = frozenset({"attention_dropout", "hidden_act", "cache_implementation"})
"""`hidden_act` is superseded by `hidden_activation`."""


def _read(config: dict[str, Any], every: int, softcap: float | None) -> dict[str, Any]:
    """The fields of both versions. Each `every`-th layer has full attention; `softcap` is the default of the logits."""
    kinds = [rope.LAYER_TYPES[bool((layer + 1) % every)] for layer in range(config["num_hidden_layers"])]
    scalar = config.get("query_pre_attn_scalar")
    hidden = config["hidden_size"]
    return {
        "num_key_value_heads": key_value_heads(config, 4),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "attention_scale": (256 if scalar is None else scalar) ** -0.5,
        "embedding_scale": hidden**0.5,
        "sliding_window": config.get("sliding_window", 4096),
        "layer_types": rope.layer_types(config, kinds),
        "logit_softcap": config.get("final_logit_softcapping", softcap),
    }


def _read2(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config),
        **_read(config, 2, 30.0),
        "attention_softcap": config.get("attn_logit_softcapping", 50.0),
    }


def _read3(config: dict[str, Any]) -> dict[str, Any]:
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    bidirectional = bool(config.get("use_bidirectional_attention"))
    return {
        **rope.read_by_layer(config, 1_000_000.0, 10_000.0),
        **_read(config, every, None),
        "architecture": "encoder" if bidirectional else "decoder",
        "pooling": "mean" if bidirectional else "last",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    scalar: float = round(scale**-2)
    return {
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "query_pre_attn_scalar": scalar if scalar and scalar**-0.5 == scale else scale**-2,
        "sliding_window": config.sliding_window,
        "layer_types": rope.written_layer_types(config),
        "final_logit_softcapping": config.logit_softcap,
    }


def _write2(config: ModelConfig) -> dict[str, Any]:
    return {**rope.write(config), **_write(config), "attn_logit_softcapping": config.attention_softcap}


def _write3(config: ModelConfig) -> dict[str, Any]:
    both_ways = config.architecture == "encoder"
    return {**rope.write_by_layer(config), **_write(config), "use_bidirectional_attention": both_ways}


def _heads3() -> dict[str, Head]:
    """transformers has no token-classification and no span head for Gemma 3."""
    named = heads("Gemma3Text", spans=None)
    del named["token_classification"]
    score = named["sequence_classification"]
    return {
        **named,
        "causal": Head("Gemma3ForCausalLM", named["causal"].operations),
        "sequence_classification": Head(score.architecture, score.operations, settings={"pooling": "last"}),
    }


FAMILIES = (
    Family(
        name="gemma2",
        keys=(*KEYS, Key("max_position_embeddings", "max_position_embeddings", 8192)),
        operations=SANDWICH,
        heads=heads("Gemma2", spans=None),
        fixed=FIXED,
        harmless=HARMLESS,
        read=_read2,
        reads=READS | {"attn_logit_softcapping"},
        write=_write2,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
    Family(
        name="gemma3_text",
        keys=(
            *(key for key in KEYS if key.theirs not in ("vocab_size", "num_attention_heads")),
            Key("vocab_size", "vocab_size", 262208),
            Key("num_attention_heads", "num_attention_heads", 8),
            Key("max_position_embeddings", "max_position_embeddings", 131072),
        ),
        operations=[
            *SANDWICH,
            Rename("layers.{n}.self_attn.q_norm.weight", "layers.{n}.self_attn.q_norm.weight"),
            Rename("layers.{n}.self_attn.k_norm.weight", "layers.{n}.self_attn.k_norm.weight"),
        ],
        heads=_heads3(),
        fixed=FIXED | {"query_key_norm": "head"},
        harmless=HARMLESS | {"sliding_window_pattern", "_sliding_window_pattern"},
        read=_read3,
        reads=READS | {"rope_local_base_freq", "use_bidirectional_attention"},
        write=_write3,
        prefix="model.",
        nested_in={"gemma3": "text_config"},
        other_prefixes=("language_model.model.", "model.language_model."),
        aliases={"language_model.lm_head.weight": "lm_head.weight"},
        ignored=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    ),
)
