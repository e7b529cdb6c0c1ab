"""BERT (Devlin et al. 2018, arXiv 1810.04805): an encoder with norms after the residuals and token types."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames, vocabulary_bias
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("embeddings.word_embeddings.weight", "embed_tokens.weight"),
    Rename("embeddings.position_embeddings.weight", "embed_positions.weight"),
    Rename("embeddings.token_type_embeddings.weight", "embed_token_types.weight"),
    *renames("embeddings.LayerNorm", "embedding_norm"),
    *renames("encoder.layer.{n}.attention.self.query", "layers.{n}.self_attn.q_proj"),
    *renames("encoder.layer.{n}.attention.self.key", "layers.{n}.self_attn.k_proj"),
    *renames("encoder.layer.{n}.attention.self.value", "layers.{n}.self_attn.v_proj"),
    *renames("encoder.layer.{n}.attention.output.dense", "layers.{n}.self_attn.o_proj"),
    *renames("encoder.layer.{n}.attention.output.LayerNorm", "layers.{n}.input_layernorm"),
    *(
        operation
        for theirs, ours in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items()
        for operation in renames(f"encoder.layer.{{n}}.crossattention.self.{theirs}", f"layers.{{n}}.cross_attn.{ours}")
    ),
    *renames("encoder.layer.{n}.crossattention.output.dense", "layers.{n}.cross_attn.o_proj"),
    *renames("encoder.layer.{n}.crossattention.output.LayerNorm", "layers.{n}.cross_attn_layernorm"),
    *renames("encoder.layer.{n}.intermediate.dense", "layers.{n}.mlp.up_proj"),
    *renames("encoder.layer.{n}.output.dense", "layers.{n}.mlp.down_proj"),
    *renames("encoder.layer.{n}.output.LayerNorm", "layers.{n}.post_attention_layernorm"),
]

KEYS = (
    Key("hidden_size", "hidden_size"),
    Key("intermediate_size", "intermediate_size"),
    Key("num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads"),
    Key("type_vocab_size", "type_vocab_size", 2),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("hidden_act", "activation", "gelu", ACTIVATIONS),
)

FIXED = {
    "architecture": "encoder",
    "position": "learned",
    "norm": "layer",
    "norm_position": "post",
    "embedding_norm": True,
    "attention_bias": "all",
    "feed_forward": "plain",
    "feed_forward_bias": True,
    "pooling": "first",
    "score_bias": True,
    "tie_word_embeddings": True,
    "head_bias": "learned",
}
"""Choices of the family; files may untie the head."""

HARMLESS = frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "directionality",
                      "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
                      "pooler_type", "_num_labels", "language", "name", "sentence_transformers", "tokenizer_class",
                      "sbert_ce_default_activation_function"})  # fmt: skip
"""Dropout rates, options of another implementation's pooler, and notes in published checkpoints."""

MUST = {"position_embedding_type": "absolute"}

TIES = Key("tie_word_embeddings", "tie_word_embeddings", True)

OLD_NORMS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""Norm weights: names in checkpoints converted from the first TensorFlow release, and present names."""

TANH = {"pooler": "tanh"}


def pooler(prefix: str) -> list[Operation]:
    """The dense layer on the first token; `prefix` is that of the body."""
    return renames(f"{prefix}pooler.dense", "pooler.dense")


MASKED: list[Operation] = [
    *vocabulary_bias("cls.predictions.decoder.bias", "cls.predictions.bias"),
    Rename("cls.predictions.decoder.weight", "lm_head.weight"),
    *renames("cls.predictions.transform.dense", "transform.dense"),
    *renames("cls.predictions.transform.LayerNorm", "transform.norm"),
]


def leftovers(name: str, *more: str) -> tuple[str, ...]:
    """Patterns of further weights in published checkpoints: a buffer, the pooler, and `more`."""
    return (rf"({name}\.)?embeddings\.position_ids", rf"({name}\.)?pooler\.dense\.(weight|bias)", *more)


def bodies(architecture: str) -> dict[str, Head]:
    """The heads `none` and `embedding` (mean pooling). Some model folders have no pooler."""
    absent = {"pooler.dense.weight": {"pooler": "none"}}
    return {
        "none": Head(architecture, pooler(""), "", TANH, absent=absent),
        "embedding": Head(architecture, pooler(""), "", {"pooling": "mean", **TANH}, absent=absent),
    }


DECODES = frozenset({"is_decoder", "add_cross_attention"})
"""The keys that `decoding` reads."""


def decoding(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of an encoder that may be used as a decoder, and as one that reads another encoder's output."""
    kind = "decoder" if config.get("is_decoder") else "encoder"
    return {"architecture": kind, "cross_attention": bool(config.get("add_cross_attention"))}


def as_decoder(fields: dict[str, Any]) -> dict[str, Any]:
    """No further fields of a causal head. Raises InputError unless `is_decoder` is set."""
    if fields["architecture"] != "decoder":
        raise InputError("is_decoder: false; a causal head needs true: without it the model sees what it predicts.")
    return {}


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys that `decoding` reads."""
    return {"is_decoder": config.architecture == "decoder", "add_cross_attention": config.cross_attention}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **decoding(config),
        "num_key_value_heads": config["num_attention_heads"],
        "head_transform": ACTIVATIONS[config.get("hidden_act") or "gelu"],
    }


HEADS = {
    "masked": Head("BertForMaskedLM", MASKED),
    "causal": Head("BertLMHeadModel", MASKED, derived=as_decoder),
    "pretraining": Head(
        "BertForPreTraining", [*pooler("bert."), *MASKED, *renames("cls.seq_relationship", "score")], settings=TANH
    ),
    "next_sentence": Head(
        "BertForNextSentencePrediction", [*pooler("bert."), *renames("cls.seq_relationship", "score")], settings=TANH
    ),
    "sequence_classification": Head(
        "BertForSequenceClassification", [*pooler("bert."), *renames("classifier", "score")], settings=TANH
    ),
    "multiple_choice": Head(
        "BertForMultipleChoice", [*pooler("bert."), *renames("classifier", "score")], settings=TANH
    ),
    "token_classification": Head("BertForTokenClassification", renames("classifier", "score")),
    "question_answering": Head("BertForQuestionAnswering", renames("qa_outputs", "score")),
    **bodies("BertModel"),
}

FAMILIES = (
    Family(
        name="bert",
        keys=(
            Key("vocab_size", "vocab_size", 30522),
            Key("max_position_embeddings", "max_position_embeddings", 512),
            *KEYS,
            TIES,
        ),
        operations=BODY,
        heads=HEADS,
        fixed=FIXED,
        required=MUST,
        harmless=HARMLESS,
        read=_read,
        reads=DECODES,
        write=write,
        prefix="bert.",
        aliases={"cls.predictions.decoder.bias": "cls.predictions.bias"},
        old_names=OLD_NORMS,
        ignored=leftovers("bert", r"cls\.seq_relationship\.(weight|bias)"),
    ),
)
