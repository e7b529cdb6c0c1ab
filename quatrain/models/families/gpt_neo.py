"""GPT-Neo (Black et al. 2021): GPT-2 with attention in a window in every other layer, and scores that are not scaled.

Full and windowed layers in turns are GPT-3's "alternating dense and locally banded sparse attention patterns" (Brown
et al. 2020, arXiv 2005.14165), after the Sparse Transformer (Child et al. 2019, arXiv 1904.10509).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.llama import REWARD, classifier_heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("wte.weight", "embed_tokens.weight"),
    Rename("wpe.weight", "embed_positions.weight"),
    *renames("h.{n}.ln_1", "layers.{n}.input_layernorm"),
    *(
        Rename(f"h.{{n}}.attn.attention.{name}.weight", f"layers.{{n}}.self_attn.{name}.weight")
        for name in ("q_proj", "k_proj", "v_proj")
    ),
    *renames("h.{n}.attn.attention.out_proj", "layers.{n}.self_attn.o_proj"),
    *renames("h.{n}.ln_2", "layers.{n}.post_attention_layernorm"),
    *renames("h.{n}.mlp.c_fc", "layers.{n}.mlp.up_proj"),
    *renames("h.{n}.mlp.c_proj", "layers.{n}.mlp.down_proj"),
    *renames("ln_f", "norm"),
]

KINDS = {"global": "full", "local": "sliding"}
"""The types of layers: transformers' names and ours."""


def _expanded(patterns: Any) -> Iterator[str]:
    """The type of each layer of `attention_types`: pairs of a list of types and how often it is repeated."""
    for pattern in patterns:
        well_formed = (
            isinstance(pattern, list | tuple)
            and len(pattern) == 2
            and isinstance(pattern[0], list | tuple)
            and all(isinstance(kind, str) and kind in KINDS for kind in pattern[0])
            and isinstance(pattern[1], int)
            and 0 <= pattern[1] <= 2_000
        )
        if not well_formed:
            raise InputError(
                f"attention_types: {format_value(pattern)}; must be a list of global and local, and how often it is "
                'repeated: [["global", "local"], 12].'
            )
        for _ in range(pattern[1]):
            yield from (KINDS[kind] for kind in pattern[0])


def _read(config: dict[str, Any]) -> dict[str, Any]:
    layers, patterns = config["num_layers"], config.get("attention_types")
    kinds = (
        [("full", "sliding")[layer % 2] for layer in range(layers)] if patterns is None else list(_expanded(patterns))
    )
    named = config.get("attention_layers")
    if named is not None and [KINDS.get(kind) for kind in named] != kinds:
        raise InputError(f"attention_layers: {format_value(named)}; contradicts attention_types.")
    inner = config.get("intermediate_size")
    return {
        "num_key_value_heads": config["num_heads"],
        "intermediate_size": 4 * config["hidden_size"] if inner is None else inner,
        "sliding_window": config.get("window_size") or 256,
        "layer_types": tuple(kinds),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in KINDS.items()}
    kinds = [names[kind] for kind in config.layer_types]
    repeats = len(kinds) // 2
    pattern = [[kinds[:2], repeats]] if kinds == kinds[:2] * repeats else [[kinds, 1]]
    return {
        "intermediate_size": config.intermediate_size,
        "window_size": config.sliding_window,
        "attention_types": pattern,
        "attention_layers": kinds,
    }


FAMILIES = (
    Family(
        name="gpt_neo",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("hidden_size", "hidden_size"),
            Key("num_layers", "num_hidden_layers"),
            Key("num_heads", "num_attention_heads"),
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("activation_function", "activation", "gelu_new", ACTIVATIONS),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads={
            "causal": Head("GPTNeoForCausalLM", [Rename("lm_head.weight", "lm_head.weight")]),
            "sequence_classification": Head(
                "GPTNeoForSequenceClassification", [Rename("score.weight", "score.weight")]
            ),
            **classifier_heads("GPTNeo"),
            "value": Head("GPTNeoForSequenceClassification", [Rename("score.weight", "score.weight")], extra=REWARD),
            "none": Head("GPTNeoModel", prefix=""),
            "embedding": Head("GPTNeoModel", prefix=""),
        },
        fixed={
            "position": "learned",
            "norm": "layer",
            "attention_bias": "output",
            "attention_scale": 1.0,
            "feed_forward": "plain",
            "feed_forward_bias": True,
        },
        harmless=frozenset(
            {
                "resid_dropout",
                "embed_dropout",
                "attention_dropout",
                "classifier_dropout",
                "summary_type",
                "summary_use_proj",
                "summary_activation",
                "summary_proj_to_labels",
                "summary_first_dropout",
            }
        ),
        read=_read,
        reads=frozenset({"intermediate_size", "window_size", "attention_types", "attention_layers"}),
        write=_write,
        prefix="transformer.",
        ignored=(r"(transformer\.)?h\.\d+\.attn\.attention\.(bias|masked_bias)",),
    ),
)
