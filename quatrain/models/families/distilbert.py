"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT with half the layers, without token types and pooler."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import bert
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames

BODY: list[Operation] = [
    Rename("embeddings.word_embeddings.weight", "embed_tokens.weight"),
    Rename("embeddings.position_embeddings.weight", "embed_positions.weight"),
    *renames("embeddings.LayerNorm", "embedding_norm"),
    *renames("transformer.layer.{n}.attention.q_lin", "layers.{n}.self_attn.q_proj"),
    *renames("transformer.layer.{n}.attention.k_lin", "layers.{n}.self_attn.k_proj"),
    *renames("transformer.layer.{n}.attention.v_lin", "layers.{n}.self_attn.v_proj"),
    *renames("transformer.layer.{n}.attention.out_lin", "layers.{n}.self_attn.o_proj"),
    *renames("transformer.layer.{n}.sa_layer_norm", "layers.{n}.input_layernorm"),
    *renames("transformer.layer.{n}.ffn.lin1", "layers.{n}.mlp.up_proj"),
    *renames("transformer.layer.{n}.ffn.lin2", "layers.{n}.mlp.down_proj"),
    *renames("transformer.layer.{n}.output_layer_norm", "layers.{n}.post_attention_layernorm"),
]

MASKED: list[Operation] = [
    *renames("vocab_transform", "transform.dense"),
    *renames("vocab_layer_norm", "transform.norm"),
    *renames("vocab_projector", "lm_head"),
]

POOLED = [*renames("pre_classifier", "pooler.dense"), *renames("classifier", "score")]
RELU = {"pooler": "relu"}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_key_value_heads": config["n_heads"],
        "head_transform": ACTIVATIONS[config.get("activation") or "gelu"],
    }


FAMILIES = (
    Family(
        name="distilbert",
        keys=(
            Key("vocab_size", "vocab_size", 30522),
            Key("max_position_embeddings", "max_position_embeddings", 512),
            Key("dim", "hidden_size"),
            Key("hidden_dim", "intermediate_size"),
            Key("n_layers", "num_hidden_layers"),
            Key("n_heads", "num_attention_heads"),
            Key("activation", "activation", "gelu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads={
            "masked": Head("DistilBertForMaskedLM", MASKED),
            "sequence_classification": Head("DistilBertForSequenceClassification", POOLED, settings=RELU),
            "multiple_choice": Head("DistilBertForMultipleChoice", POOLED, settings=RELU),
            "token_classification": Head("DistilBertForTokenClassification", renames("classifier", "score")),
            "question_answering": Head("DistilBertForQuestionAnswering", renames("qa_outputs", "score")),
            "none": Head("DistilBertModel", prefix=""),
            "embedding": Head("DistilBertModel", prefix="", settings={"pooling": "mean"}),
        },
        fixed={name: value for name, value in bert.FIXED.items() if name != "tie_word_embeddings"}
        | {"norm_eps": 1e-12},
        # sinusoidal_pos_embds is the initialization of the position table, whose rows are in the files in any case.
        harmless=frozenset(
            {
                "dropout",
                "attention_dropout",
                "qa_dropout",
                "seq_classif_dropout",
                "sinusoidal_pos_embds",
                "tie_weights_",
            }
        ),
        read=_read,
        prefix="distilbert.",
        ignored=(r"(distilbert\.)?embeddings\.position_ids",),
    ),
)
