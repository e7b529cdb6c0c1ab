"""ALBERT (Lan et al. 2019, arXiv 1909.11942): BERT whose layers share weights, with a narrow embedding."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import bert
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames, vocabulary_bias
from quatrain.models.transformer.config import ModelConfig

LAYER = "encoder.albert_layer_groups.{n}.albert_layers.0"

BODY: list[Operation] = [
    *(op for op in bert.BODY if op.sources[0].startswith("embeddings.")),
    *renames("encoder.embedding_hidden_mapping_in", "project_in"),
    *(
        operation
        for theirs, ours in {
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.dense": "self_attn.o_proj",
            "attention.LayerNorm": "input_layernorm",
            "ffn": "mlp.up_proj",
            "ffn_output": "mlp.down_proj",
            "full_layer_layer_norm": "post_attention_layernorm",
        }.items()
        for operation in renames(f"{LAYER}.{theirs}", f"layers.{{n}}.{ours}")
    ),
]


def _pooler(prefix: str) -> list[Operation]:
    return renames(f"{prefix}pooler", "pooler.dense")


MASKED: list[Operation] = [
    *vocabulary_bias("predictions.decoder.bias", "predictions.bias"),
    Rename("predictions.decoder.weight", "lm_head.weight"),
    *renames("predictions.dense", "transform.dense"),
    *renames("predictions.LayerNorm", "transform.norm"),
]

ABSENT = {"pooler.weight": {"pooler": "none"}}
"""Some model folders have no pooler."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    layers, groups = config["num_hidden_layers"], config.get("num_hidden_groups") or 1
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "head_transform": ACTIVATIONS[config.get("hidden_act") or "gelu_new"],
        "blocks": tuple(int(layer / (layers / groups)) for layer in range(layers)),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"num_hidden_groups": config.num_blocks}


FAMILIES = (
    Family(
        name="albert",
        keys=(
            *(key for key in bert.KEYS if key.theirs != "hidden_act"),
            Key("hidden_act", "activation", "gelu_new", ACTIVATIONS),
            bert.TIES,
            Key("vocab_size", "vocab_size", 30000),
            Key("embedding_size", "embedding_size", 128),
            Key("max_position_embeddings", "max_position_embeddings", 512),
        ),
        operations=BODY,
        heads={
            "masked": Head("AlbertForMaskedLM", MASKED),
            "pretraining": Head(
                "AlbertForPreTraining",
                [*_pooler("albert."), *MASKED, *renames("sop_classifier.classifier", "score")],
                settings=bert.TANH,
            ),
            "sequence_classification": Head(
                "AlbertForSequenceClassification",
                [*_pooler("albert."), *renames("classifier", "score")],
                settings=bert.TANH,
            ),
            "multiple_choice": Head(
                "AlbertForMultipleChoice", [*_pooler("albert."), *renames("classifier", "score")], settings=bert.TANH
            ),
            "token_classification": Head("AlbertForTokenClassification", renames("classifier", "score")),
            "question_answering": Head("AlbertForQuestionAnswering", renames("qa_outputs", "score")),
            "none": Head("AlbertModel", _pooler(""), "", bert.TANH, absent=ABSENT),
            "embedding": Head("AlbertModel", _pooler(""), "", {"pooling": "mean", **bert.TANH}, absent=ABSENT),
        },
        fixed={**bert.FIXED, "embedding_projection": "all"},
        required={"inner_group_num": 1, "position_embedding_type": "absolute"},
        harmless=frozenset(
            {
                "hidden_dropout_prob",
                "attention_probs_dropout_prob",
                "classifier_dropout_prob",
                "net_structure_type",
                "gap_size",
                "num_memory_blocks",
                "down_scale_factor",
            }
        ),
        read=_read,
        reads=frozenset({"num_hidden_groups"}),
        write=_write,
        prefix="albert.",
        aliases={"predictions.decoder.bias": "predictions.bias"},
        ignored=(
            r"(albert\.)?embeddings\.position_ids",
            r"(albert\.)?pooler\.(weight|bias)",
            r"sop_classifier\.classifier\.(weight|bias)",
        ),
    ),
)
