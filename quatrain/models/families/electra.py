"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT that learns which tokens a small generator has replaced.

The generator is a masked language model of the same family.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import bert
from quatrain.models.families.mapping import Family, Head, Key
from quatrain.models.families.weights import Operation, renames

MASKED: list[Operation] = [
    *renames("generator_lm_head", "lm_head"),
    *renames("generator_predictions.dense", "transform.dense"),
    *renames("generator_predictions.LayerNorm", "transform.norm"),
]

CLASSIFIER = [*renames("classifier.dense", "pooler.dense"), *renames("classifier.out_proj", "score")]
GELU = {"pooler": "gelu"}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    narrow = (config.get("embedding_size") or 128) != config["hidden_size"]
    return {
        **bert.decoding(config),
        "num_key_value_heads": config["num_attention_heads"],
        "head_transform": "gelu",
        "embedding_projection": "all" if narrow else "tokens",
    }


def _detector(fields: dict[str, Any]) -> dict[str, Any]:
    """The dense layer before the detector's score has the activation of the layers."""
    return {"pooler": fields["activation"]}


FAMILIES = (
    Family(
        name="electra",
        keys=(
            *bert.KEYS,
            bert.TIES,
            Key("vocab_size", "vocab_size", 30522),
            Key("embedding_size", "embedding_size", 128),
            Key("max_position_embeddings", "max_position_embeddings", 512),
        ),
        operations=[*bert.BODY, *renames("embeddings_project", "project_in")],
        heads={
            "masked": Head("ElectraForMaskedLM", MASKED),
            "causal": Head("ElectraForCausalLM", MASKED, derived=bert.as_decoder),
            "replaced_tokens": Head(
                "ElectraForPreTraining",
                [
                    *renames("discriminator_predictions.dense", "pooler.dense"),
                    *renames("discriminator_predictions.dense_prediction", "score"),
                ],
                derived=_detector,
            ),
            "sequence_classification": Head("ElectraForSequenceClassification", CLASSIFIER, settings=GELU),
            "multiple_choice": Head(
                "ElectraForMultipleChoice",
                [*renames("sequence_summary.summary", "pooler.dense"), *renames("classifier", "score")],
                settings=GELU,
            ),
            "token_classification": Head("ElectraForTokenClassification", renames("classifier", "score")),
            "question_answering": Head("ElectraForQuestionAnswering", renames("qa_outputs", "score")),
            "none": Head("ElectraModel", (), ""),
            "embedding": Head("ElectraModel", (), "", {"pooling": "mean"}),
        },
        fixed=bert.FIXED,
        required={
            **bert.MUST,
            "summary_type": "first",
            "summary_use_proj": True,
            "summary_activation": "gelu",
        },
        harmless=frozenset(
            {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "summary_last_dropout"}
        ),
        read=_read,
        reads=bert.DECODES,
        write=bert.write,
        prefix="electra.",
        ignored=(
            r"(electra\.)?embeddings\.position_ids",
            r"(discriminator|generator)_predictions\..*",
            r"generator_lm_head\..*",
        ),
    ),
)
