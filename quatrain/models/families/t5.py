"""T5 (Raffel et al. 2019, arXiv 1910.10683): an encoder-decoder with relative positions, RMSNorm and no biases.

T5 v1.1, FLAN-T5 and mT5 (Xue et al. 2020, arXiv 2010.11934) have a gated feed-forward network and an untied head.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig


def _attention(theirs: str, ours: str) -> list[Operation]:
    return [Rename(f"{theirs}.{name}.weight", f"{ours}.{name}_proj.weight") for name in "qkvo"]


def _feed_forward(theirs: str, ours: str, gated: bool) -> list[Operation]:
    names = {"wi_0": "gate_proj", "wi_1": "up_proj"} if gated else {"wi": "up_proj"}
    names["wo"] = "down_proj"
    return [Rename(f"{theirs}.DenseReluDense.{name}.weight", f"{ours}.mlp.{our}.weight") for name, our in names.items()]


BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _encoder(ours: str, mark: str, gated: bool) -> list[Operation]:
    block, layer = f"encoder.block.{mark}", f"{ours}layers.{mark}"
    return [
        Rename(f"encoder.{BIAS}", f"{ours}relative_bias.weight"),
        *_attention(f"{block}.layer.0.SelfAttention", f"{layer}.self_attn"),
        Rename(f"{block}.layer.0.layer_norm.weight", f"{layer}.input_layernorm.weight"),
        *_feed_forward(f"{block}.layer.1", layer, gated),
        Rename(f"{block}.layer.1.layer_norm.weight", f"{layer}.post_attention_layernorm.weight"),
        Rename("encoder.final_layer_norm.weight", f"{ours}norm.weight"),
    ]


def _decoder(gated: bool) -> list[Operation]:
    return [
        Rename(f"decoder.{BIAS}", "relative_bias.weight"),
        *_attention("decoder.block.{n}.layer.0.SelfAttention", "layers.{n}.self_attn"),
        Rename("decoder.block.{n}.layer.0.layer_norm.weight", "layers.{n}.input_layernorm.weight"),
        *_attention("decoder.block.{n}.layer.1.EncDecAttention", "layers.{n}.cross_attn"),
        Rename("decoder.block.{n}.layer.1.layer_norm.weight", "layers.{n}.cross_attn_layernorm.weight"),
        *_feed_forward("decoder.block.{n}.layer.2", "layers.{n}", gated),
        Rename("decoder.block.{n}.layer.2.layer_norm.weight", "layers.{n}.post_attention_layernorm.weight"),
        Rename("decoder.final_layer_norm.weight", "norm.weight"),
    ]


def _operations(config: ModelConfig) -> list[Operation]:
    shared, gated = Rename("shared.weight", "embed_tokens.weight"), config.feed_forward == "gated"
    if config.architecture == "encoder":
        return [shared, *_encoder("", "{n}", gated)]
    return [shared, *_encoder("encoder.", "{e}", gated), *_decoder(gated)]


def _encoder_alone(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that heads on the encoder alone change."""
    return {"architecture": "encoder", "num_hidden_layers": fields["num_encoder_layers"]}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    named = config.get("feed_forward_proj") or ("gated-gelu" if config.get("model_type") == "mt5" else "relu")
    gate, _, activation = str(named).rpartition("-")
    # "gated-gelu" has always meant the tanh form.
    known = {**ACTIVATIONS, "gelu": "gelu_tanh"} if gate else ACTIVATIONS
    if gate not in ("", "gated") or activation not in known:
        raise InputError(
            f"feed_forward_proj: {named!r} is not supported; must be an activation "
            f"({', '.join(ACTIVATIONS)}) or gated- followed by one."
        )
    derived = {"dense_act_fn": config.get("dense_act_fn"), "is_gated_act": config.get("is_gated_act")}
    same = {"dense_act_fn": (None, activation, "gelu_new" if gate else activation), "is_gated_act": (None, bool(gate))}
    problems = [
        f"{key}: {value!r}; must be {same[key][-1]!r}, as feed_forward_proj {named!r} implies"
        for key, value in derived.items()
        if value not in same[key] and ACTIVATIONS.get(str(value)) != known[activation]
    ]
    if problems:
        raise InputError(f"This {config['model_type']} config.json cannot be used:", problems)
    tied, width = config.get("tie_word_embeddings") is not False, config["d_model"]
    # Version 1.1 is recognized by its untied head unless newer files name the scaling; mT5 never scales.
    scaled = config.get("scale_decoder_outputs", tied) and config.get("model_type") != "mt5"
    start, pad = config.get("decoder_start_token_id"), config.get("pad_token_id", 0)
    layers = config.get("num_decoder_layers")
    return {
        "num_key_value_heads": config["num_heads"],
        "num_hidden_layers": config["num_layers"] if layers is None else layers,
        "decoder_start_token_id": (pad or 0) if start is None else start,
        "pad_token_id": pad,
        "eos_token_id": config.get("eos_token_id", 1),
        "feed_forward": "gated" if gate else "plain",
        "activation": known[activation],
        "tie_word_embeddings": tied,
        "logit_scale": width**-0.5 if scaled else 1.0,
        "max_position_embeddings": config.get("n_positions") or 512,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    names = {"gelu_tanh": "gelu"} if config.feed_forward == "gated" else {"gelu_tanh": "gelu_new"}
    activation = names.get(config.activation, config.activation)
    return {
        "num_decoder_layers": config.num_hidden_layers,
        "decoder_start_token_id": config.decoder_start_token_id,
        "feed_forward_proj": f"gated-{activation}" if config.feed_forward == "gated" else activation,
        "tie_word_embeddings": config.tie_word_embeddings,
        **({"scale_decoder_outputs": config.logit_scale != 1.0} if config.family == "t5" else {}),
        "n_positions": config.max_position_embeddings,
        "is_encoder_decoder": config.architecture == "encoder-decoder",
    }


DECODER = (r"(transformer\.)?decoder\..*", r"lm_head\.weight")
"""Weights in files of the whole model that the encoder alone does not need."""


def _family(name: str, stem: str) -> Family:
    return Family(
        name=name,
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("d_model", "hidden_size"),
            Key("d_kv", "head_dim", 64),
            Key("d_ff", "intermediate_size"),
            Key("num_layers", "num_encoder_layers"),
            Key("num_heads", "num_attention_heads"),
            Key("relative_attention_num_buckets", "relative_buckets", 32),
            Key("relative_attention_max_distance", "relative_max_distance", 128),
            Key("layer_norm_epsilon", "norm_eps", 1e-6),
        ),
        operations=_operations,
        heads={
            "seq2seq": Head(
                f"{stem}ForConditionalGeneration",
                [Rename("lm_head.weight", "lm_head.weight")],
                old_architectures=(f"{stem}WithLMHeadModel",),
            ),
            "none": Head(f"{stem}Model"),
            "sequence_classification": Head(
                f"{stem}ForSequenceClassification",
                [
                    *renames("classification_head.dense", "pooler.dense"),
                    *renames("classification_head.out_proj", "score"),
                ],
                "transformer.",
                {"pooler": "tanh"},
            ),
            "token_classification": Head(
                f"{stem}ForTokenClassification",
                renames("classifier", "score"),
                "transformer.",
                derived=_encoder_alone,
                ignored=DECODER,
            ),
            "question_answering": Head(f"{stem}ForQuestionAnswering", renames("qa_outputs", "score")),
            "embedding": Head(
                f"{stem}EncoderModel", settings={"pooling": "mean"}, derived=_encoder_alone, ignored=DECODER
            ),
        },
        fixed={
            "architecture": "encoder-decoder",
            "position": "relative",
            "norm": "rms",
            "attention_scale": 1.0,
            "pooling": "eos",
            "score_bias": True,
        },
        required={"is_decoder": False},
        harmless=frozenset({"dropout_rate", "classifier_dropout", "initializer_factor", "tokenizer_class"}),
        read=_read,
        reads=frozenset(
            {
                "num_decoder_layers",
                "decoder_start_token_id",
                "feed_forward_proj",
                "dense_act_fn",
                "is_gated_act",
                "tie_word_embeddings",
                "scale_decoder_outputs",
                "n_positions",
                "is_encoder_decoder",
            }
        ),
        write=_write,
        aliases={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
        ignored=(r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )


FAMILIES = (_family("t5", "T5"), _family("mt5", "MT5"))
