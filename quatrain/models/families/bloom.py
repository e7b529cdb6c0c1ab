"""BLOOM (Le Scao et al. 2022, arXiv 2211.05100): ALiBi, a norm after the embedding, fused projections."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.llama import classifier_heads, heads
from quatrain.models.families.mapping import Family, Key
from quatrain.models.families.weights import Operation, Rename, Split, renames
from quatrain.models.transformer.config import ModelConfig


def fused(theirs: str, leaf: str) -> Split:
    """The fused query-key-value projection, interleaved by head; `leaf` is weight or bias."""
    return Split(
        f"{theirs}.{leaf}", tuple(f"layers.{{n}}.self_attn.{name}_proj.{leaf}" for name in "qkv"), parts="interleaved"
    )


BODY: list[Operation] = [
    Rename("word_embeddings.weight", "embed_tokens.weight"),
    *renames("word_embeddings_layernorm", "embedding_norm"),
    *renames("h.{n}.input_layernorm", "layers.{n}.input_layernorm"),
    fused("h.{n}.self_attention.query_key_value", "weight"),
    fused("h.{n}.self_attention.query_key_value", "bias"),
    *renames("h.{n}.self_attention.dense", "layers.{n}.self_attn.o_proj"),
    *renames("h.{n}.post_attention_layernorm", "layers.{n}.post_attention_layernorm"),
    *renames("h.{n}.mlp.dense_h_to_4h", "layers.{n}.mlp.up_proj"),
    *renames("h.{n}.mlp.dense_4h_to_h", "layers.{n}.mlp.down_proj"),
    *renames("ln_f", "norm"),
]

SIZES = {
    "hidden_size": ("hidden_size", "n_embed"),
    "num_hidden_layers": ("n_layer", "num_hidden_layers"),
    "num_attention_heads": ("n_head", "num_attention_heads"),
}
"""Our name of a size and its names in config.json files."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    problems = []
    for ours, names in SIZES.items():
        given = {name: config[name] for name in names if config.get(name) is not None}
        if not given:
            problems.append(f"{' or '.join(names)}: missing; a bloom config needs it")
        elif len(set(given.values())) > 1:
            named = " and ".join(f"{name} {value}" for name, value in given.items())
            problems.append(f"{named}: contradict each other")
        else:
            values[ours] = next(iter(given.values()))
    hidden = values.get("hidden_size")
    inner = config.get("n_inner")
    if hidden is not None and inner not in (None, 4 * hidden):
        problems.append(f"n_inner: {inner!r}; must be 4 * hidden_size ({4 * hidden})")
    if config.get("slow_but_exact") and (config.get("pretraining_tp") or 1) > 1:
        problems.append("slow_but_exact: true; must be false, because with pretraining_tp above 1 it leaves out biases")
    if problems:
        raise InputError("This bloom config.json cannot be used:", problems)
    return {
        **values,
        "num_key_value_heads": values["num_attention_heads"],
        "intermediate_size": 4 * values["hidden_size"],
        "max_position_embeddings": config.get("seq_length") or 2048,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "seq_length": config.max_position_embeddings,
    }


FAMILIES = (
    Family(
        name="bloom",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads={**heads("Bloom", spans=None), **classifier_heads("Bloom")},
        fixed={
            "position": "alibi",
            "norm": "layer",
            "embedding_norm": True,
            "attention_bias": "all",
            "feed_forward": "plain",
            "feed_forward_bias": True,
            "activation": "gelu_tanh",
        },
        required={"apply_residual_connection_post_layernorm": False},
        harmless=frozenset(
            {
                "hidden_dropout",
                "attention_dropout",
                "classifier_dropout",
                "attention_softmax_in_fp32",
                "bias_dropout_fusion",
                "masked_softmax_fusion",
                "offset_alibi",
                "pretraining_tp",
                "skip_bias_add",
                "skip_bias_add_qkv",
                "slow_but_exact",
            }
        ),
        read=_read,
        reads=frozenset({"n_inner", "seq_length", *(name for names in SIZES.values() for name in names)}),
        write=_write,
        prefix="transformer.",
    ),
)
