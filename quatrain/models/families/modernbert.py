"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): a gated encoder with rotary positions and mostly local attention.

Every third layer attends to the whole text and has its own rotary base; the others attend to `local_attention` tokens.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, Split, renames
from quatrain.models.transformer.config import ModelConfig

LAYERS = {"full_attention": "full", "sliding_attention": "sliding"}
GLOBAL_THETA, LOCAL_THETA = 160_000.0, 10_000.0
QUERY_KEY_VALUE = tuple(f"layers.{{n}}.self_attn.{name}_proj" for name in "qkv")
GATE_UP = ("layers.{n}.mlp.gate_proj", "layers.{n}.mlp.up_proj")


def _fused(theirs: str, ours: tuple[str, ...]) -> list[Operation]:
    return [Split(f"{theirs}.{leaf}", tuple(f"{name}.{leaf}" for name in ours)) for leaf in ("weight", "bias")]


BODY: list[Operation] = [
    Rename("embeddings.tok_embeddings.weight", "embed_tokens.weight"),
    *renames("embeddings.norm", "embedding_norm"),
    *renames("layers.{n}.attn_norm", "layers.{n}.input_layernorm"),
    *_fused("layers.{n}.attn.Wqkv", QUERY_KEY_VALUE),
    *renames("layers.{n}.attn.Wo", "layers.{n}.self_attn.o_proj"),
    *renames("layers.{n}.mlp_norm", "layers.{n}.post_attention_layernorm"),
    *_fused("layers.{n}.mlp.Wi", GATE_UP),
    *renames("layers.{n}.mlp.Wo", "layers.{n}.mlp.down_proj"),
    *renames("final_norm", "norm"),
]

MASKED = [
    *renames("head.dense", "transform.dense"),
    *renames("head.norm", "transform.norm"),
    *renames("decoder", "lm_head"),
]
LABELS = [*renames("head.dense", "pooler.dense"), *renames("head.norm", "pooler.norm"), *renames("classifier", "score")]
PLAIN = {"pooler": "none", "pooler_norm": False}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    activation = config.get("classifier_activation") or "gelu"
    pooling = config.get("classifier_pooling") or "cls"
    problems = []
    if activation not in ACTIVATIONS:
        problems.append(f"classifier_activation: {activation!r}; must be one of {', '.join(ACTIVATIONS)}")
    if pooling not in ("cls", "mean"):
        problems.append(f"classifier_pooling: {pooling!r}; must be cls or mean")
    layers = _layer_types(config)
    problems += [f"layer_types: {kind!r}; must be one of {', '.join(LAYERS)}" for kind in sorted({*layers} - {*LAYERS})]
    if problems:
        raise InputError("This modernbert config.json cannot be used:", problems)
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "norm": "layer" if config.get("norm_bias") else "layer_without_bias",
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "head_bias": "none" if config.get("decoder_bias") is False else "learned",
        "head_transform": ACTIVATIONS[activation],
        "pooler": ACTIVATIONS[activation],
        "pooler_norm": True,
        "pooling": "first" if pooling == "cls" else "mean",
        "layer_types": tuple(LAYERS[kind] for kind in layers),
        **_rotary(config),
    }


def _layer_types(config: dict[str, Any]) -> list[str]:
    if config.get("layer_types"):
        return list(config["layer_types"])
    every = config.get("global_attn_every_n_layers") or 3
    count = config["num_hidden_layers"]
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(count)]


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary fields of both types of layer, from the old layout (one key each) or the new one (one object each)."""
    full, local = rope.by_layer(config)
    theta = rope.theta(rope.first_given(full.get("rope_theta"), config.get("global_rope_theta"), GLOBAL_THETA))
    old = config.get("local_rope_theta", LOCAL_THETA)
    if rope.scaling(local) is not None:
        raise InputError("rope_parameters: a modernbert model supports no rotary scaling of its sliding-window layers.")
    return {
        "rope_theta": theta,
        "local_rope_theta": rope.theta(rope.first_given(local.get("rope_theta"), old, theta)),
        "rope_scaling": rope.scaling(full),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in LAYERS.items()}
    scaled = rope.write(config).get("rope_scaling") or {"rope_type": "default"}
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    written: dict[str, Any] = {
        "layer_types": [names[kind] for kind in config.layer_types],
        "rope_parameters": {
            "full_attention": {**scaled, "rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "norm_bias": config.norm == "layer",
        "attention_bias": config.attention_bias == "all",
        "decoder_bias": config.head_bias == "learned",
        "classifier_pooling": "mean" if config.pooling == "mean" else "cls",
        "classifier_activation": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.head_transform),
    }
    every = _every(config.layer_types)
    if every is not None and config.rope_scaling is None:  # Read by versions of transformers before 5.
        written |= {
            "global_attn_every_n_layers": every,
            "global_rope_theta": config.rope_theta,
            "local_rope_theta": local,
        }
    return written


def _every(layers: tuple[str, ...]) -> int | None:
    """The n such that every n-th layer has full attention, or None if there is no such n."""
    for every in range(1, len(layers) + 1):
        if all((kind == "full") == (layer % every == 0) for layer, kind in enumerate(layers)):
            return every
    return None


FAMILIES = (
    Family(
        name="modernbert",
        keys=(
            Key("vocab_size", "vocab_size", 50368),
            Key("hidden_size", "hidden_size"),
            Key("intermediate_size", "intermediate_size"),
            Key("num_hidden_layers", "num_hidden_layers"),
            Key("num_attention_heads", "num_attention_heads"),
            Key("max_position_embeddings", "max_position_embeddings", 8192),
            Key("norm_eps", "norm_eps", 1e-5),
            Key("local_attention", "sliding_window", 128),
            Key("hidden_activation", "activation", "gelu", ACTIVATIONS),
            Key("mlp_bias", "feed_forward_bias", False),
            Key("classifier_bias", "pooler_bias", False),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads={
            "masked": Head("ModernBertForMaskedLM", MASKED),
            "sequence_classification": Head("ModernBertForSequenceClassification", LABELS),
            "token_classification": Head("ModernBertForTokenClassification", LABELS),
            "question_answering": Head("ModernBertForQuestionAnswering", LABELS),
            "multiple_choice": Head("ModernBertForMultipleChoice", LABELS),
            "none": Head("ModernBertModel", prefix="", settings=PLAIN),
            "embedding": Head("ModernBertModel", prefix="", settings={"pooling": "mean", **PLAIN}),
        },
        fixed={
            "architecture": "encoder",
            "position": "rotary",
            "norm_position": "pre",
            "first_norm": False,
            "embedding_norm": True,
            "feed_forward": "gated",
            "score_bias": True,
        },
        required={"position_embedding_type": "absolute"},
        harmless=frozenset(
            {
                "attention_dropout",
                "embedding_dropout",
                "mlp_dropout",
                "classifier_dropout",
                "initializer_cutoff_factor",
                "deterministic_flash_attn",
                "reference_compile",
                "repad_logits_with_grad",
                "sparse_prediction",
                "sparse_pred_ignore_index",
                "layer_norm_eps",
                "cls_token_id",
            }
        ),
        read=_read,
        reads=frozenset(
            {
                "norm_bias",
                "attention_bias",
                "decoder_bias",
                "classifier_activation",
                "classifier_pooling",
                "layer_types",
                "global_attn_every_n_layers",
                "rope_parameters",
                "rope_scaling",
                "global_rope_theta",
                "local_rope_theta",
            }
        ),
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\..*inv_freq",),
    ),
)
