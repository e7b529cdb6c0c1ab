"""BART (Lewis et al. 2019, arXiv 1910.13461): an encoder-decoder with learned positions and post-norm."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig


def layers(theirs: str, ours: str, mark: str) -> list[Operation]:
    """The weights of each layer of the encoder (`{e}`) or decoder (`{n}`); Marian's files have the same names."""
    attention = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    parts = {f"self_attn.{name}": f"self_attn.{our}" for name, our in attention.items()}
    parts |= {"self_attn_layer_norm": "input_layernorm", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
    parts["final_layer_norm"] = "post_attention_layernorm"
    if mark == "{n}":
        parts |= {f"encoder_attn.{name}": f"cross_attn.{our}" for name, our in attention.items()}
        parts["encoder_attn_layer_norm"] = "cross_attn_layernorm"
    return [
        operation
        for name, our in parts.items()
        for operation in renames(f"{theirs}.layers.{mark}.{name}", f"{ours}layers.{mark}.{our}")
    ]


def embeddings(config: ModelConfig) -> list[Operation]:
    """The embedding of both sides, or one for each."""
    if not config.encoder_vocab_size:
        return [Rename("shared.weight", "embed_tokens.weight")]
    unused = () if config.family == "marian" else ("shared.weight",)
    return [
        Rename("encoder.embed_tokens.weight", "embed_source_tokens.weight"),
        Rename("decoder.embed_tokens.weight", "embed_tokens.weight", copies=unused),
    ]


BODY: list[Operation] = [
    Rename("encoder.embed_positions.weight", "encoder.embed_positions.weight"),
    Rename("decoder.embed_positions.weight", "embed_positions.weight"),
    *renames("encoder.layernorm_embedding", "encoder.embedding_norm"),
    *renames("decoder.layernorm_embedding", "embedding_norm"),
    *layers("encoder", "encoder.", "{e}"),
    *layers("decoder", "", "{n}"),
]

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("d_model", "hidden_size"),
    Key("max_position_embeddings", "max_position_embeddings", 1024),
    Key("encoder_layers", "num_encoder_layers"),
    Key("encoder_attention_heads", "encoder_attention_heads"),
    Key("encoder_ffn_dim", "encoder_intermediate_size"),
    Key("decoder_layers", "num_hidden_layers"),
    Key("decoder_attention_heads", "num_attention_heads"),
    Key("decoder_ffn_dim", "intermediate_size"),
    Key("activation_function", "activation", "gelu", ACTIVATIONS),
    Key("init_std", "initializer_range", 0.02),
)

FIXED: dict[str, Any] = {
    "architecture": "encoder-decoder",
    "position": "learned",
    "position_offset": 2,
    "norm": "layer",
    "norm_position": "post",
    "embedding_norm": True,
    "attention_bias": "all",
    "feed_forward": "plain",
    "feed_forward_bias": True,
    "tie_word_embeddings": True,
    "head_bias": "fixed",
    "padding_embedding": "fixed",
    "pooling": "eos",
    "score_bias": True,
}

MUST: dict[str, Any] = {
    "is_decoder": False,
    "normalize_before": False,
    "add_bias_logits": False,
    "add_final_layer_norm": False,
}

HARMLESS = frozenset({"dropout", "attention_dropout", "activation_dropout", "classifier_dropout", "classif_dropout",
                      "encoder_layerdrop", "decoder_layerdrop", "extra_pos_embeddings", "replacing_rate", "save_step",
                      "student_decoder_layers", "student_encoder_layers", "prefix", "tokenizer_class"})  # fmt: skip

READS = frozenset({"scale_embedding", "decoder_start_token_id", "is_encoder_decoder", "num_hidden_layers",
                   "hidden_size", "num_attention_heads", "_num_labels", "force_bos_token_to_be_generated"})  # fmt: skip

REPEATED = {
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
}
"""Further keys of old files, with the key whose value they repeat."""


def read(config: dict[str, Any]) -> dict[str, Any]:
    """Fields that follow from several keys; raises InputError if a repeated key has another value."""
    problems = [
        f"{repeated}: {config[repeated]!r}; must be {key} = {config[key]!r}, which it repeats"
        for repeated, key in REPEATED.items()
        if config.get(repeated) not in (None, config[key])
    ]
    width = config["d_model"]
    for side in ("encoder", "decoder"):
        heads = config[f"{side}_attention_heads"]
        if width % heads:
            problems.append(f"{side}_attention_heads: {heads}; must divide d_model ({width})")
    if config.get("is_encoder_decoder") is False:
        problems.append("is_encoder_decoder: False; must be true: the decoder alone is not supported")
    if problems:
        raise InputError(f"This {config['model_type']} config.json cannot be used:", problems)
    start = config.get("decoder_start_token_id")
    return {
        "num_key_value_heads": config["decoder_attention_heads"],
        "embedding_scale": width**0.5 if config.get("scale_embedding") else 1.0,
        "decoder_start_token_id": config.get("eos_token_id") if start is None else start,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read` uses."""
    return {
        "scale_embedding": config.embedding_scale != 1.0,
        "decoder_start_token_id": config.decoder_start_token_id,
        "is_encoder_decoder": True,
    }


SEQ2SEQ: list[Operation] = [
    Rename("lm_head.weight", "lm_head.weight"),
    Rename("final_logits_bias", "logits_bias"),
]

ABSENT = {"final_logits_bias": {"head_bias": "none"}}

CLASSIFIER: list[Operation] = [
    *renames("classification_head.dense", "pooler.dense"),
    *renames("classification_head.out_proj", "score"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    """With untied embeddings transformers gives each side its own, besides the vocabulary head's."""
    tied = config.get("tie_word_embeddings") is not False
    return {
        **read(config),
        "tie_word_embeddings": tied,
        "encoder_vocab_size": 0 if tied else config["vocab_size"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {**write(config), "tie_word_embeddings": not config.encoder_vocab_size}


FAMILIES = (
    Family(
        name="bart",
        keys=KEYS,
        operations=lambda config: [*embeddings(config), *BODY],
        heads={
            "seq2seq": Head("BartForConditionalGeneration", SEQ2SEQ, absent=ABSENT),
            "none": Head("BartModel", (), ""),
            "sequence_classification": Head("BartForSequenceClassification", CLASSIFIER, settings={"pooler": "tanh"}),
            "question_answering": Head("BartForQuestionAnswering", renames("qa_outputs", "score")),
        },
        fixed=FIXED,
        required=MUST | {"normalize_embedding": True, "static_position_embeddings": False},
        harmless=HARMLESS,
        read=_read,
        reads=READS | {"tie_word_embeddings"},
        write=_write,
        prefix="model.",
        aliases={
            "model.encoder.embed_tokens.weight": "model.shared.weight",
            "model.decoder.embed_tokens.weight": "model.shared.weight",
        },
        ignored=(r"(model\.)?(encoder|decoder)\.version",),
    ),
)
