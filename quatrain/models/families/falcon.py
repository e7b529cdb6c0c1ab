"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867): fused projections by key/value head, parallel sublayers.

The 40B, 180B and 11B models ("new" architecture) have a few key/value heads and one norm or two; the 7B model has one
key/value head and one norm; the RW models have ALiBi, sequential sublayers and biases.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.llama import classifier_heads, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.weights import Operation, Rename, Split, renames
from quatrain.models.transformer.config import ModelConfig


def _operations(config: ModelConfig) -> list[Operation]:
    norms = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "post_attention_layernorm"}
    if config.residual == "parallel":
        norms = {"ln_attn": "input_layernorm", "ln_mlp": "post_attention_layernorm"}
    parts = {
        **norms,
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    return [
        Rename("word_embeddings.weight", "embed_tokens.weight"),
        *(
            Split(
                f"h.{{n}}.self_attention.query_key_value.{leaf}",
                tuple(f"layers.{{n}}.self_attn.{name}_proj.{leaf}" for name in "qkv"),
                parts="by_group",
            )
            for leaf in ("weight", "bias")
        ),
        *(op for theirs, ours in parts.items() for op in renames(f"h.{{n}}.{theirs}", f"layers.{{n}}.{ours}")),
        *renames("ln_f", "norm"),
    ]


SIZES = {"hidden_size": "n_embed", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
"""Sizes, and their names in the first config.json files."""


def _groups(config: dict[str, Any], heads: int) -> int:
    """The number of key/value heads."""
    given: int = config.get("num_kv_heads") or config.get("n_head_kv") or heads
    if config.get("new_decoder_architecture"):
        return given
    return 1 if config.get("multi_query", True) is not False else given


def _read(config: dict[str, Any]) -> dict[str, Any]:
    sizes = {ours: config.get(ours) or config.get(old) for ours, old in SIZES.items()}
    if missing := [f"{name}: missing; a falcon config needs it" for name, value in sizes.items() if value is None]:
        raise InputError("This falcon config.json cannot be used:", missing)
    hidden, count = sizes["hidden_size"], sizes["num_attention_heads"]
    heads: int = count or 0
    if config.get("new_decoder_architecture"):
        norms = config.get("num_ln_in_parallel_attn")
        residual = "parallel" if norms is None or norms == 2 else "parallel_shared"
    else:
        residual = "sequential" if config.get("parallel_attn") is False else "parallel_shared"
        if config.get("num_ln_in_parallel_attn") not in (None, 1):
            raise InputError("num_ln_in_parallel_attn: 2; needs new_decoder_architecture.")
    alibi, biased = bool(config.get("alibi")), bool(config.get("bias"))
    width = (hidden or 0) // heads
    return {
        **sizes,
        **rope.read_whole({**config, **sizes}),
        "num_key_value_heads": _groups(config, heads),
        "intermediate_size": config.get("ffn_hidden_size") or 4 * (hidden or 0),
        "position": "alibi" if alibi else "rotary",
        "alibi_scale": width**-0.5 if alibi else 1.0,
        "residual": residual,
        "attention_bias": "all" if biased else "none",
        "feed_forward_bias": biased,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    new = config.residual == "parallel" or config.num_key_value_heads not in (1, config.num_attention_heads)
    return {
        **{name: getattr(config, name) for name in SIZES},
        **rope.write(config),
        "num_kv_heads": config.num_key_value_heads,
        "ffn_hidden_size": config.intermediate_size,
        "alibi": config.position == "alibi",
        "bias": config.feed_forward_bias,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": (2 if config.residual == "parallel" else 1) if new else None,
        "multi_query": config.num_key_value_heads == 1,
        "parallel_attn": config.residual != "sequential",
    }


FAMILIES = (
    Family(
        name="falcon",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("activation", "activation", "gelu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=_operations,
        heads={**heads("Falcon", spans=None), **classifier_heads("Falcon")},
        fixed={"norm": "layer", "feed_forward": "plain"},
        required={"apply_residual_connection_post_layernorm": False},
        harmless=frozenset({"hidden_dropout", "attention_dropout"}),
        read=_read,
        reads=rope.KEYS
        | {*SIZES, *SIZES.values(), "num_kv_heads", "n_head_kv", "ffn_hidden_size", "alibi", "bias", "multi_query"}
        | {"new_decoder_architecture", "num_ln_in_parallel_attn", "parallel_attn"},
        write=_write,
        prefix="transformer.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
