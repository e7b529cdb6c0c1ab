"""T5 (Raffel et al. 2019, arXiv 1910.10683): an encoder-decoder with relative positions, RMSNorm and no biases.

T5 v1.1, FLAN-T5 and mT5 (Xue et al. 2020, arXiv 2010.11934) are gated and have a head of their own.
"""

from __future__ import annotations

from typing import Any

from quatrain.errors import InputError
from quatrain.models.config import ModelConfig
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename


def _attention(theirs: str, ours: str) -> list[Operation]:
    return [Rename(f"{theirs}.{name}.weight", f"{ours}.{name}_proj.weight") for name in "qkvo"]


def _feed_forward(theirs: str, ours: str, gated: bool) -> list[Operation]:
    names = {"wi_0": "gate_proj", "wi_1": "up_proj"} if gated else {"wi": "up_proj"}
    names["wo"] = "down_proj"
    return [
        Rename(f"{theirs}.DenseReluDense.{name}.weight", f"{ours}.mlp.{our}.weight") for name, our in names.items()
    ]


def _body(gated: bool) -> list[Operation]:
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        Rename("shared.weight", "embed_tokens.weight"),
        Rename(f"encoder.{bias}", "encoder.relative_bias.weight"),
        Rename(f"decoder.{bias}", "relative_bias.weight"),
        *_attention("encoder.block.{e}.layer.0.SelfAttention", "encoder.layers.{e}.self_attn"),
        Rename("encoder.block.{e}.layer.0.layer_norm.weight", "encoder.layers.{e}.input_layernorm.weight"),
        *_feed_forward("encoder.block.{e}.layer.1", "encoder.layers.{e}", gated),
        Rename("encoder.block.{e}.layer.1.layer_norm.weight", "encoder.layers.{e}.post_attention_layernorm.weight"),
        Rename("encoder.final_layer_norm.weight", "encoder.norm.weight"),
        *_attention("decoder.block.{n}.layer.0.SelfAttention", "layers.{n}.self_attn"),
        Rename("decoder.block.{n}.layer.0.layer_norm.weight", "layers.{n}.input_layernorm.weight"),
        *_attention("decoder.block.{n}.layer.1.EncDecAttention", "layers.{n}.cross_attn"),
        Rename("decoder.block.{n}.layer.1.layer_norm.weight", "layers.{n}.cross_attn_layernorm.weight"),
        *_feed_forward("decoder.block.{n}.layer.2", "layers.{n}", gated),
        Rename("decoder.block.{n}.layer.2.layer_norm.weight", "layers.{n}.post_attention_layernorm.weight"),
        Rename("decoder.final_layer_norm.weight", "norm.weight"),
    ]


def _operations(config: ModelConfig) -> list[Operation]:
    return _body(config.feed_forward == "gated")


def _read(config: dict[str, Any]) -> dict[str, Any]:
    named = config.get("feed_forward_proj") or "relu"
    gate, _, activation = named.rpartition("-")
    # "gated-gelu" has always meant the tanh form.
    known = {**ACTIVATIONS, "gelu": "gelu_tanh"} if gate else ACTIVATIONS
    if gate not in ("", "gated") or activation not in known:
        raise InputError(
            f"feed_forward_proj: {named!r} is not known to Quatrain; must be an activation "
            f"({', '.join(ACTIVATIONS)}) or gated- and one."
        )
    tied = config.get("tie_word_embeddings")
    scaled = config.get("scale_decoder_outputs", tied is not False) and config.get("model_type") != "mt5"
    return {
        "num_key_value_heads": config["num_heads"],
        "num_hidden_layers": config.get("num_decoder_layers") or config["num_layers"],
        "decoder_start_token_id": config.get("decoder_start_token_id", config.get("pad_token_id") or 0),
        "feed_forward": "gated" if gate else "plain",
        "activation": known[activation],
        "tie_word_embeddings": tied is not False,
        "logit_scale": config["d_model"] ** -0.5 if scaled else 1.0,
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
        "is_encoder_decoder": True,
    }


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
        heads={"seq2seq": Head(f"{stem}ForConditionalGeneration", [Rename("lm_head.weight", "lm_head.weight")])},
        fixed={
            "architecture": "encoder-decoder",
            "position": "relative",
            "norm": "rms",
            "attention_scale": 1.0,
            "pooling": "end",
        },
        must={"is_decoder": False},
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
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )


FAMILIES = (_family("t5", "T5"), _family("mt5", "MT5"))
