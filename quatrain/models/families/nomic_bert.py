"""NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613): BERT with rotary positions and SwiGLU, and few biases."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import bert, rope
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, Split, renames, vocabulary_bias
from quatrain.models.transformer.config import ModelConfig

THETA = 1000.0
"""The default rotary base."""

LAYER = "encoder.layers.{n}"

OPERATIONS: list[Operation] = [
    Rename("embeddings.word_embeddings.weight", "embed_tokens.weight"),
    Rename("embeddings.token_type_embeddings.weight", "embed_token_types.weight"),
    *renames("emb_ln", "embedding_norm"),
    Split(f"{LAYER}.attn.Wqkv.weight", tuple(f"layers.{{n}}.self_attn.{name}_proj.weight" for name in "qkv")),
    Rename(f"{LAYER}.attn.out_proj.weight", "layers.{n}.self_attn.o_proj.weight"),
    Rename(f"{LAYER}.mlp.fc11.weight", "layers.{n}.mlp.up_proj.weight"),
    Rename(f"{LAYER}.mlp.fc12.weight", "layers.{n}.mlp.gate_proj.weight"),
    Rename(f"{LAYER}.mlp.fc2.weight", "layers.{n}.mlp.down_proj.weight"),
    *renames(f"{LAYER}.norm1", "layers.{n}.input_layernorm"),
    *renames(f"{LAYER}.norm2", "layers.{n}.post_attention_layernorm"),
]

MASKED: list[Operation] = [
    *vocabulary_bias("cls.predictions.decoder.bias", "cls.predictions.bias"),
    Rename("cls.predictions.decoder.weight", "lm_head.weight"),
    *renames("cls.predictions.transform.dense", "transform.dense"),
    *renames("cls.predictions.transform.layer_norm", "transform.norm"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config, THETA),
        "num_key_value_heads": config["num_attention_heads"],
        "head_transform": ACTIVATIONS[config.get("hidden_act") or "silu"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return rope.write(config)


FAMILIES = (
    Family(
        name="nomic_bert",
        keys=(
            Key("tie_word_embeddings", "tie_word_embeddings", True),
            *(key for key in bert.KEYS if key.theirs != "hidden_act"),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("head_dim", "head_dim", 0),
            Key("vocab_size", "vocab_size", 30528),
            Key("max_position_embeddings", "max_position_embeddings", 2048),
        ),
        operations=OPERATIONS,
        heads={
            "masked": Head("NomicBertForMaskedLM", MASKED),
            "sequence_classification": Head(
                "NomicBertForSequenceClassification",
                [*bert.pooler("nomic_bert."), *renames("classifier", "score")],
                settings=bert.TANH,
            ),
            "token_classification": Head("NomicBertForTokenClassification", renames("classifier", "score")),
            "none": Head("NomicBertModel", prefix=""),
            "embedding": Head("NomicBertModel", prefix="", settings={"pooling": "mean"}),
        },
        fixed={
            **bert.FIXED,
            "position": "rotary",
            "attention_bias": "none",
            "feed_forward": "gated",
            "feed_forward_bias": False,
        },
        harmless=frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"}),
        read=_read,
        reads=rope.KEYS,
        write=_write,
        prefix="nomic_bert.",
        aliases={"cls.predictions.decoder.bias": "cls.predictions.bias"},
        ignored=(r".*rotary_emb\.inv_freq", r"(nomic_bert\.)?pooler\.dense\.(weight|bias)"),
    ),
)
