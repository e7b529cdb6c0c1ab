"""Llama (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; Llama 3.1, arXiv 2407.21783) and similar models.

Rotary positions, RMSNorm, SwiGLU, grouped-query attention. SmolLM uses this architecture under the name llama.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

LAYER_SIZES = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "hidden_size"),
    Key("intermediate_size", "intermediate_size"),
    Key("num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads"),
)
SIZES = (*LAYER_SIZES, Key("head_dim", "head_dim", 0))

BODY: list[Operation] = [
    Rename("embed_tokens.weight", "embed_tokens.weight"),
    *(
        operation
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        for operation in renames(f"layers.{{n}}.self_attn.{name}", f"layers.{{n}}.self_attn.{name}")
    ),
    *(
        operation
        for name in ("gate_proj", "up_proj", "down_proj")
        for operation in renames(f"layers.{{n}}.mlp.{name}", f"layers.{{n}}.mlp.{name}")
    ),
    Rename("layers.{n}.input_layernorm.weight", "layers.{n}.input_layernorm.weight"),
    Rename("layers.{n}.post_attention_layernorm.weight", "layers.{n}.post_attention_layernorm.weight"),
    Rename("norm.weight", "norm.weight"),
]


def heads(name: str, *, spans: str | None = "transformer.", without: Collection[str] = ()) -> dict[str, Head]:
    """The heads of a transformers decoder, except those named in `without`.

    `spans` is the body's prefix in span-head files; None: no span head.
    """
    score: list[Operation] = [Rename("score.weight", "score.weight")]
    result = {
        "causal": Head(f"{name}ForCausalLM", [Rename("lm_head.weight", "lm_head.weight")]),
        "sequence_classification": Head(f"{name}ForSequenceClassification", score),
        "token_classification": Head(
            f"{name}ForTokenClassification", renames("score", "score"), settings={"score_bias": True}
        ),
        "value": Head(f"{name}ForSequenceClassification", score, extra=REWARD),
        "none": Head(f"{name}Model", prefix=""),
        "embedding": Head(f"{name}Model", prefix=""),
    }
    if spans is not None:
        result["question_answering"] = Head(
            f"{name}ForQuestionAnswering", renames("qa_outputs", "score"), spans, {"score_bias": True}
        )
    return {head: value for head, value in result.items() if head not in without}


def classifier_heads(name: str) -> dict[str, Head]:
    """The token heads of a decoder `name` whose weights transformers calls `classifier` and `qa_outputs`."""
    bias = {"score_bias": True}
    return {
        "token_classification": Head(f"{name}ForTokenClassification", renames("classifier", "score"), settings=bias),
        "question_answering": Head(f"{name}ForQuestionAnswering", renames("qa_outputs", "score"), settings=bias),
    }


CLASSIFIERS = ("sequence_classification", "value")
"""Heads that a family lacks for which transformers has no ForSequenceClassification."""

REWARD = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
"""config.json keys of a value head: it is stored as a regression with one output, as reward models are."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config),
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention_bias": "all" if config.get("attention_bias") else "none",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
    }


FAMILIES = (
    Family(
        name="llama",
        keys=(
            *SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("mlp_bias", "feed_forward_bias", False),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads=heads("Llama"),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout", "max_sequence_length", "is_llama_config", "transformers.js_config"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "attention_bias"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
