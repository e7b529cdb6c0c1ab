"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, fused (in, out) projections in its files."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.llama import REWARD
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Rename, Split, renames
from quatrain.models.transformer.config import ModelConfig


def context_problem(config: dict[str, Any]) -> str | None:
    """What is wrong with two different lengths of the context."""
    context = config.get("n_ctx")
    if context is None or config.get("n_positions", context) == context:
        return None
    return f"n_ctx: {context}; contradicts n_positions ({config['n_positions']})"


def inner_size(config: dict[str, Any]) -> int:
    """The width of the feed-forward network: `n_inner`, by default four times the hidden width."""
    inner: int | None = config.get("n_inner")
    return 4 * config["n_embd"] if inner is None else inner


def _read(config: dict[str, Any]) -> dict[str, Any]:
    context = context_problem(config)
    problems = [] if context is None else [context]
    if "GPT2DoubleHeadsModel" in (config.get("architectures") or []):
        problems += [
            f"{key}: {config[key]!r} is not supported; must be {' or '.join(map(repr, known))}"
            for key, known in SUMMARY.items()
            if key in config and config[key] not in known
        ]
    if problems:
        raise InputError("This gpt2 config.json cannot be used:", problems)
    scaled = config.get("scale_attn_weights") is not False
    return {
        "num_key_value_heads": config["n_head"],
        "cross_attention": bool(config.get("add_cross_attention")),
        "intermediate_size": inner_size(config),
        "attention_scale": None if scaled else 1.0,
        "attention_scale_by_layer": "inverse" if config.get("scale_attn_by_inverse_layer_idx") else "constant",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_inner": config.intermediate_size,
        "add_cross_attention": config.cross_attention,
        "scale_attn_weights": config.attention_scale is None,
        "scale_attn_by_inverse_layer_idx": config.attention_scale_by_layer == "inverse",
    }


SUMMARY: dict[str, tuple[Any, ...]] = {
    "summary_type": ("cls_index", "last"),
    "summary_use_proj": (True,),
    "summary_activation": (None, ""),
    "summary_proj_to_labels": (True,),
}
"""Options of the multiple-choice head and their supported values: a score of the last token of each choice."""


HARMLESS = frozenset(
    {
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    }
)
"""Keys of the GPTs without effect here: dropout in training, and a head that is not read."""


def projections(leaf: str) -> tuple[str, ...]:
    """Our names of the parts of a fused query-key-value projection."""
    return tuple(f"layers.{{n}}.self_attn.{name}_proj.{leaf}" for name in "qkv")


FAMILIES = (
    Family(
        name="gpt2",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("n_embd", "hidden_size"),
            Key("n_layer", "num_hidden_layers"),
            Key("n_head", "num_attention_heads"),
            Key("n_positions", "max_position_embeddings", 1024),
            Key("activation_function", "activation", "gelu_new", ACTIVATIONS),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=[
            Rename("wte.weight", "embed_tokens.weight"),
            Rename("wpe.weight", "embed_positions.weight"),
            *renames("h.{n}.ln_1", "layers.{n}.input_layernorm"),
            Split("h.{n}.attn.c_attn.weight", projections("weight"), transpose=True),
            Split("h.{n}.attn.c_attn.bias", projections("bias")),
            *renames("h.{n}.attn.c_proj", "layers.{n}.self_attn.o_proj", transpose=True),
            *renames("h.{n}.ln_cross_attn", "layers.{n}.cross_attn_layernorm"),
            *renames("h.{n}.crossattention.q_attn", "layers.{n}.cross_attn.q_proj", transpose=True),
            *(
                Split(
                    f"h.{{n}}.crossattention.c_attn.{leaf}",
                    tuple(f"layers.{{n}}.cross_attn.{name}_proj.{leaf}" for name in "kv"),
                    transpose=leaf == "weight",
                )
                for leaf in ("weight", "bias")
            ),
            *renames("h.{n}.crossattention.c_proj", "layers.{n}.cross_attn.o_proj", transpose=True),
            *renames("h.{n}.ln_2", "layers.{n}.post_attention_layernorm"),
            *renames("h.{n}.mlp.c_fc", "layers.{n}.mlp.up_proj", transpose=True),
            *renames("h.{n}.mlp.c_proj", "layers.{n}.mlp.down_proj", transpose=True),
            *renames("ln_f", "norm"),
        ],
        heads={
            "causal": Head("GPT2LMHeadModel", [Rename("lm_head.weight", "lm_head.weight")]),
            "sequence_classification": Head("GPT2ForSequenceClassification", [Rename("score.weight", "score.weight")]),
            "token_classification": Head(
                "GPT2ForTokenClassification", renames("classifier", "score"), settings={"score_bias": True}
            ),
            "question_answering": Head(
                "GPT2ForQuestionAnswering", renames("qa_outputs", "score"), settings={"score_bias": True}
            ),
            "multiple_choice": Head(
                "GPT2DoubleHeadsModel",
                renames("multiple_choice_head.summary", "score"),
                settings={"score_bias": True},
            ),
            "value": Head("GPT2ForSequenceClassification", [Rename("score.weight", "score.weight")], extra=REWARD),
            "none": Head("GPT2Model", prefix=""),
            "embedding": Head("GPT2Model", prefix=""),
        },
        fixed={
            "position": "learned",
            "norm": "layer",
            "feed_forward": "plain",
            "attention_bias": "all",
            "feed_forward_bias": True,
        },
        harmless=frozenset(
            {
                # Selects the more precise of two orders of operations; here softmax is always computed in float32.
                "reorder_and_upcast_attn",
                "predict_special_tokens",
                "is_decoder",
                "classifier_dropout",
            }
        )
        | HARMLESS,
        read=_read,
        reads=frozenset(
            {"add_cross_attention", "n_inner", "n_ctx", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"}
        ),
        write=_write,
        prefix="transformer.",
        ignored=(r"(transformer\.)?h\.\d+\.(attn|crossattention)\.(bias|masked_bias)",),
    ),
)
