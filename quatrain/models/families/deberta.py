"""DeBERTa v2 and v3 (He et al. 2020, arXiv 2006.03654; 2021, arXiv 2111.09543): disentangled attention.

The score of two tokens is the sum of three: content to content, content to distance, and distance to content. Distances
are embedded in logarithmic buckets, by one table for all layers. In v2 XL and XXL a convolution over neighbouring
tokens runs beside the first layer.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import bert
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

PARTS = {"self.query_proj": "q_proj", "self.key_proj": "k_proj", "self.value_proj": "v_proj", "output.dense": "o_proj"}

BODY: list[Operation] = [
    Rename("embeddings.word_embeddings.weight", "embed_tokens.weight"),
    Rename("embeddings.token_type_embeddings.weight", "embed_token_types.weight"),
    *renames("embeddings.LayerNorm", "embedding_norm"),
    Rename("encoder.rel_embeddings.weight", "distances.embedding.weight"),
    *renames("encoder.LayerNorm", "distances.norm"),
    *renames("encoder.conv.conv", "neighbours.conv"),
    *renames("encoder.conv.LayerNorm", "neighbours.norm"),
    *(
        operation
        for theirs, ours in PARTS.items()
        for operation in renames(f"encoder.layer.{{n}}.attention.{theirs}", f"layers.{{n}}.self_attn.{ours}")
    ),
    *(op for op in bert.BODY if ".layer." in op.sources[0] and ".attention.self." not in op.sources[0]
      and ".attention.output.dense" not in op.sources[0]),
]  # fmt: skip

ATTENTION: dict[str, Any] = {"relative_attention": True, "share_att_key": True, "position_biased_input": False}
"""Options of the attention that every published model has; transformers' defaults are others."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    problems = [
        f"{name}: {config.get(name)!r} is not supported; must be {value}"
        for name, value in ATTENTION.items()
        if config.get(name) is not value
    ]
    kinds = config.get("pos_att_type") or []
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    if sorted(map(str, kinds)) != ["c2p", "p2c"]:
        problems.append(f"pos_att_type: {config.get('pos_att_type')!r} is not supported; must be p2c|c2p")
    if "layer_norm" not in (config.get("norm_rel_ebd") or "none"):
        problems.append(f"norm_rel_ebd: {config.get('norm_rel_ebd')!r} is not supported; must be layer_norm")
    given = config.get("position_buckets"), config.get("max_relative_positions")
    buckets, longest = (-1 if value is None else value for value in given)
    if buckets < 2:
        problems.append(f"position_buckets: {buckets}; must be at least 2")
    width = config.get("pooler_hidden_size")
    if width not in (None, config["hidden_size"]):
        problems.append(f"pooler_hidden_size: {width}; must be hidden_size ({config['hidden_size']})")
    if problems:
        raise InputError("This deberta-v2 config.json cannot be used:", problems)
    positions = config.get("max_position_embeddings") or 512
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "neighbour_tokens": config.get("conv_kernel_size") or 0,
        "neighbour_activation": ACTIVATIONS.get(config.get("conv_act") or "tanh", str(config.get("conv_act"))),
        "relative_buckets": buckets,
        "relative_max_distance": positions if longest < 1 else longest,
        "max_position_embeddings": positions,
        "head_transform": ACTIVATIONS[config.get("hidden_act") or "gelu"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    same = config.relative_max_distance == config.max_position_embeddings
    return {
        **ATTENTION,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": config.neighbour_tokens,
        "conv_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.neighbour_activation),
        "position_buckets": config.relative_buckets,
        "max_relative_positions": -1 if same else config.relative_max_distance,
        "max_position_embeddings": config.max_position_embeddings,
        "pooler_hidden_size": config.hidden_size,
    }


GELU = {"pooler": "gelu"}
POOLED = [*renames("pooler.dense", "pooler.dense"), *renames("classifier", "score")]

FAMILIES = (
    Family(
        name="deberta-v2",
        keys=(
            *(key for key in bert.KEYS if key.theirs not in ("layer_norm_eps", "type_vocab_size")),
            Key("layer_norm_eps", "norm_eps", 1e-7),
            Key("type_vocab_size", "type_vocab_size", 0),
            Key("vocab_size", "vocab_size", 128100),
            bert.TIES,
        ),
        operations=BODY,
        heads={
            "masked": Head("DebertaV2ForMaskedLM", bert.MASKED),
            "sequence_classification": Head("DebertaV2ForSequenceClassification", POOLED, settings=GELU),
            "multiple_choice": Head("DebertaV2ForMultipleChoice", POOLED, settings=GELU),
            "token_classification": Head("DebertaV2ForTokenClassification", renames("classifier", "score")),
            "question_answering": Head("DebertaV2ForQuestionAnswering", renames("qa_outputs", "score")),
            "none": Head("DebertaV2Model", prefix=""),
            "embedding": Head("DebertaV2Model", prefix="", settings={"pooling": "mean"}),
        },
        fixed={**bert.FIXED, "position": "disentangled"},
        required={"legacy": True, "pooler_hidden_act": "gelu", "conv_groups": 1},
        harmless=frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout"}),
        read=_read,
        fresh={**ATTENTION, "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm"},
        reads=frozenset(
            {
                "conv_kernel_size",
                "conv_act",
                *ATTENTION,
                "pos_att_type",
                "norm_rel_ebd",
                "position_buckets",
                "max_relative_positions",
            }
        )
        | {"max_position_embeddings", "pooler_hidden_size"},
        write=_write,
        prefix="deberta.",
        aliases={"cls.predictions.decoder.bias": "cls.predictions.bias"},
        ignored=(
            r"(deberta\.)?embeddings\.position_ids",
            r"(lm|mask)_predictions\..*",
            r"pooler\.dense\.(weight|bias)",
        ),
    ),
)
