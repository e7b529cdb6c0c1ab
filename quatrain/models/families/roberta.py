"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT with positions that skip padding and other heads.

XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116) and CamemBERT (Martin et al. 2019, arXiv 1911.03894) are the same.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import bert
from quatrain.models.families.mapping import Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames, vocabulary_bias
from quatrain.models.transformer.config import ModelConfig

MASKED: list[Operation] = [
    *renames("lm_head.dense", "transform.dense"),
    *renames("lm_head.layer_norm", "transform.norm"),
    Rename("lm_head.decoder.weight", "lm_head.weight"),
    *vocabulary_bias("lm_head.decoder.bias", "lm_head.bias"),
]

CLASSIFIER = [*renames("classifier.dense", "pooler.dense"), *renames("classifier.out_proj", "score")]


def read(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of positions that skip padding; raises InputError if the table has no row for a token."""
    padding = config.get("pad_token_id")
    padding = 1 if padding is None else padding
    rows = config.get("max_position_embeddings") or 512
    if padding + 1 >= rows:
        raise InputError(
            f"max_position_embeddings: {rows}; must be above {padding + 1}, the row of the first token "
            "(pad_token_id + 1)."
        )
    # The first rows of the table belong to padding and to the ids below it; no token uses them.
    kind = bert.decoding(config)
    return {
        **kind,
        "padding_positions": "skipped" if kind["architecture"] == "encoder" else "counted",
        "num_key_value_heads": config["num_attention_heads"],
        "pad_token_id": padding,
        "position_offset": padding + 1,
        "max_position_embeddings": rows - padding - 1,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read` uses."""
    return {
        "max_position_embeddings": config.max_position_embeddings + config.position_offset,
        **bert.write(config),
    }


def _family(name: str, stem: str) -> Family:
    return Family(
        name=name,
        keys=(Key("vocab_size", "vocab_size", 50265), *bert.KEYS, bert.TIES),
        operations=bert.BODY,
        heads={
            "masked": Head(f"{stem}ForMaskedLM", MASKED),
            "causal": Head(f"{stem}ForCausalLM", MASKED, derived=bert.as_decoder),
            "sequence_classification": Head(f"{stem}ForSequenceClassification", CLASSIFIER, settings=bert.TANH),
            "multiple_choice": Head(
                f"{stem}ForMultipleChoice",
                [*bert.pooler("roberta."), *renames("classifier", "score")],
                settings=bert.TANH,
            ),
            "token_classification": Head(f"{stem}ForTokenClassification", renames("classifier", "score")),
            "question_answering": Head(f"{stem}ForQuestionAnswering", renames("qa_outputs", "score")),
            **bert.bodies(f"{stem}Model"),
        },
        fixed={**bert.FIXED, "head_transform": "gelu"},
        required=bert.MUST,
        harmless=bert.HARMLESS,
        read=read,
        reads=bert.DECODES | {"max_position_embeddings"},
        write=write,
        prefix="roberta.",
        aliases={"lm_head.decoder.bias": "lm_head.bias"},
        old_names=bert.OLD_NORMS,
        ignored=bert.leftovers("roberta"),
    )


FAMILIES = (_family("roberta", "Roberta"), _family("xlm-roberta", "XLMRoberta"), _family("camembert", "Camembert"))
