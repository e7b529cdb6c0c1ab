"""MPNet (Song et al. 2020, arXiv 2004.09297): BERT with T5's bias by distance besides its learned positions."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import bert, roberta
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("embeddings.word_embeddings.weight", "embed_tokens.weight"),
    Rename("embeddings.position_embeddings.weight", "embed_positions.weight"),
    *renames("embeddings.LayerNorm", "embedding_norm"),
    Rename("encoder.relative_attention_bias.weight", "relative_bias.weight"),
    *(
        operation
        for theirs, ours in {
            "attention.attn.q": "self_attn.q_proj",
            "attention.attn.k": "self_attn.k_proj",
            "attention.attn.v": "self_attn.v_proj",
            "attention.attn.o": "self_attn.o_proj",
            "attention.LayerNorm": "input_layernorm",
            "intermediate.dense": "mlp.up_proj",
            "output.dense": "mlp.down_proj",
            "output.LayerNorm": "post_attention_layernorm",
        }.items()
        for operation in renames(f"encoder.layer.{{n}}.{theirs}", f"layers.{{n}}.{ours}")
    ),
]

PADDING = 1
"""The token that takes no position, whatever pad_token_id is."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    padding = config.get("pad_token_id")
    read = roberta.read({**config, "pad_token_id": PADDING})
    return {**read, "pad_token_id": PADDING if padding is None else padding, "unplaced_token_id": PADDING}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"max_position_embeddings": config.max_position_embeddings + config.position_offset}


FAMILIES = (
    Family(
        name="mpnet",
        keys=(
            bert.TIES,
            *(key for key in bert.KEYS if key.theirs not in ("type_vocab_size", "hidden_act")),
            Key("hidden_act", "activation", "gelu", ACTIVATIONS),
            Key("vocab_size", "vocab_size", 30527),
        ),
        operations=BODY,
        heads={
            "masked": Head("MPNetForMaskedLM", roberta.MASKED),
            "sequence_classification": Head("MPNetForSequenceClassification", roberta.CLASSIFIER, settings=bert.TANH),
            "multiple_choice": Head(
                "MPNetForMultipleChoice",
                [*bert.pooler("mpnet."), *renames("classifier", "score")],
                settings=bert.TANH,
            ),
            "token_classification": Head("MPNetForTokenClassification", renames("classifier", "score")),
            "question_answering": Head("MPNetForQuestionAnswering", renames("qa_outputs", "score")),
            **bert.bodies("MPNetModel"),
        },
        fixed={
            **bert.FIXED,
            "position": "learned_relative",
            "relative_buckets": 32,
            "relative_max_distance": 128,
            "head_transform": "gelu",
        },
        required={"relative_attention_num_buckets": 32},
        harmless=frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob"}),
        read=_read,
        reads=frozenset({"max_position_embeddings"}),
        write=_write,
        prefix="mpnet.",
        aliases={"lm_head.decoder.bias": "lm_head.bias"},
        old_names=bert.OLD_NORMS,
        ignored=bert.leftovers("mpnet"),
    ),
)
