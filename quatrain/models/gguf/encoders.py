"""llama.cpp's architectures of encoders and of T5, and how they map to our configuration and weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quatrain.models.families.weights import Operation, Rename
from quatrain.models.gguf.architecture import (
    ATTENTION,
    FEED_FORWARD,
    GATED_IN_ONE,
    GELU,
    NO_PROJECTIONS,
    PLAIN_FEED_FORWARD,
    QUERY_KEY_VALUE,
    Architecture,
    Metadata,
    named,
    without,
)
from quatrain.models.gguf.operations import SkippedRows
from quatrain.models.transformer.config import ModelConfig

POST_NORMS = {"attn_output_norm": "input_layernorm", "layer_output_norm": "post_attention_layernorm"}
ENCODER_HEADS = ("embedding", "none", "sequence_classification")


def _bert(config: ModelConfig) -> list[Operation]:
    whole = {
        "token_embd": "embed_tokens", "token_embd_norm": "embedding_norm", "token_types": "embed_token_types",
        "cls": "pooler.dense", "cls.output": "score",
    }  # fmt: skip
    layer = without(ATTENTION | PLAIN_FEED_FORWARD, "attn_norm", "ffn_norm")
    return [*named(whole, layer | POST_NORMS), SkippedRows("position_embd.weight", "embed_positions.weight")]


def _modern_bert(config: ModelConfig) -> list[Operation]:
    whole = {"token_embd": "embed_tokens", "token_embd_norm": "embedding_norm", "output_norm": "norm",
             "cls": "pooler.dense", "cls.norm": "pooler.norm", "cls.output": "score"}  # fmt: skip
    layer = NO_PROJECTIONS | {name: FEED_FORWARD[name] for name in ("ffn_norm", "ffn_down")}
    return [*named(whole, layer), *QUERY_KEY_VALUE, *GATED_IN_ONE]


def _nomic_bert(config: ModelConfig) -> list[Operation]:
    whole = {"token_embd": "embed_tokens", "token_embd_norm": "embedding_norm", "token_types": "embed_token_types"}
    layer = without(NO_PROJECTIONS | FEED_FORWARD, "attn_norm", "ffn_norm")
    return [*named(whole, layer | POST_NORMS), *QUERY_KEY_VALUE]


def _t5(config: ModelConfig) -> list[Operation]:
    def side(theirs: str, ours: str, mark: str) -> list[Operation]:
        layer = {"attn_o" if name == "attn_output" else name: our for name, our in (ATTENTION | FEED_FORWARD).items()}
        if theirs == "dec":
            layer |= {f"cross_attn_{name}": f"cross_attn.{name}_proj" for name in "qkvo"}
            layer["cross_attn_norm"] = "cross_attn_layernorm"
        operations: list[Operation] = [
            Rename(f"{theirs}.blk.{mark}.{name}.weight", f"{ours}layers.{mark}.{our}.weight")
            for name, our in layer.items()
        ]
        operations.append(Rename(f"{theirs}.blk.0.attn_rel_b.weight", f"{ours}relative_bias.weight"))
        return [*operations, Rename(f"{theirs}.output_norm.weight", f"{ours}norm.weight")]

    shared: list[Operation] = [Rename("token_embd.weight", "embed_tokens.weight")]
    if config.architecture == "encoder":
        return [*shared, *side("enc", "", "{n}")]
    return [*shared, Rename("output.weight", "lm_head.weight"), *side("enc", "encoder.", "{e}"),
            *side("dec", "", "{n}")]  # fmt: skip


POOLINGS = {"mean": 1, "first": 2, "last": 3}
"""llama.cpp's numbers of poolings; 0 is none, 4 the rank of a classifier."""


def _write_encoder(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.causal": False}
    if config.head == "sequence_classification":
        return {**values, "pooling_type": 4, "classifier.output_labels": list(config.labels)}
    return {**values, "pooling_type": POOLINGS.get(config.pooling, 0)}


def _read_encoder(own: Metadata) -> dict[str, Any]:
    kinds = {number: name for name, number in POOLINGS.items()}
    pooling = own.get("pooling_type", 1)
    if pooling == 4:
        labels = tuple(own.get("classifier.output_labels") or ("LABEL_0",))
        return {"head": "sequence_classification", "labels": labels}
    return {"head": "embedding", "pooling": kinds.get(pooling, "mean"), "pooler": "none"}


def _bert_family(own: Metadata) -> str:
    if own.get("tokenizer.ggml.model") == "t5":
        return "xlm-roberta"
    if own.get("tokenizer.ggml.model") == "gpt2":
        return "roberta"
    return "bert"


def _read_bert(own: Metadata) -> dict[str, Any]:
    shapes = own["shapes"]
    types = shapes.get("token_types.weight", (0,))[0]
    found = {**_read_encoder(own), "type_vocab_size": types}
    if "position_embd.weight" in shapes:
        found["max_position_embeddings"] = shapes["position_embd.weight"][0]
    return found


def _bert_limits(config: ModelConfig) -> Iterator[str]:
    if config.head == "sequence_classification" and config.pooler not in ("none", "tanh"):
        yield f"pooler activation {config.pooler}: llama.cpp computes tanh"
    if config.pooling not in (*POOLINGS, "eos"):
        yield f"pooling {config.pooling}: llama.cpp has {', '.join(POOLINGS)}"


def _read_nomic_bert(own: Metadata) -> dict[str, Any]:
    return {**_read_encoder(own), "type_vocab_size": own["shapes"].get("token_types.weight", (0,))[0]}


def _write_modern_bert(config: ModelConfig) -> dict[str, Any]:
    values = {**_write_encoder(config), "attention.sliding_window": config.sliding_window}
    values["attention.sliding_window_pattern"] = 3
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    return values | {"rope.freq_base_swa": float(local)}


def _read_modern_bert(own: Metadata) -> dict[str, Any]:
    every = own.get("attention.sliding_window_pattern", 3)
    kinds = tuple("sliding" if layer % every else "full" for layer in range(own["block_count"]))
    return {**_read_encoder(own), "layer_types": kinds, "sliding_window": own.get("attention.sliding_window", 128),
            "pooler_norm": False, "local_rope_theta": float(own.get("rope.freq_base_swa", 10000.0))}  # fmt: skip


def _modern_bert_limits(config: ModelConfig) -> Iterator[str]:
    pattern = tuple("sliding" if layer % 3 else "full" for layer in range(config.num_hidden_layers))
    if config.layer_types != pattern:
        yield "layer_types: llama.cpp computes full attention in every 3rd layer from the first on"
    if config.norm != "layer_without_bias" or config.attention_bias != "none" or config.feed_forward_bias:
        yield "biases of norms, attention or feed-forward: llama.cpp has none for modern-bert"


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.relative_buckets_count": config.relative_buckets}
    if config.architecture == "encoder-decoder":
        values["decoder_block_count"] = config.num_hidden_layers
        values["decoder_start_token_id"] = config.decoder_start_token_id or 0
    return values


def _read_t5(own: Metadata) -> dict[str, Any]:
    shapes = own["shapes"]
    gated = any(name.endswith("blk.0.ffn_gate.weight") for name in shapes)
    layers = own["block_count"]
    tied = "output.weight" not in shapes
    return {
        "num_encoder_layers": layers,
        "num_hidden_layers": own.get("decoder_block_count", layers),
        "encoder_attention_heads": own["attention.head_count"],
        "encoder_intermediate_size": own["feed_forward_length"],
        "relative_buckets": own.get("attention.relative_buckets_count", 32),
        "decoder_start_token_id": own.get("decoder_start_token_id", 0),
        "feed_forward": "gated" if gated else "plain",
        "activation": "gelu_tanh" if gated else "relu",
        "logit_scale": own["embedding_length"] ** -0.5 if tied else 1.0,
    }


def _t5_limits(config: ModelConfig) -> Iterator[str]:
    known = "gelu_tanh" if config.feed_forward == "gated" else "relu"
    if config.activation != known:
        yield f"activation {config.activation}: llama.cpp computes {known} for a {config.feed_forward} feed-forward"
    if config.relative_max_distance != 128:
        yield f"relative_attention_max_distance {config.relative_max_distance}: llama.cpp computes 128"


ENCODERS = (
    Architecture(
        "bert", ("bert", "roberta", "xlm-roberta", "camembert", "distilbert"), _bert, "attention.layer_norm_epsilon",
        GELU, ENCODER_HEADS, _bert_limits, _write_encoder, _read_bert, rotary=False, family_of=_bert_family,
        classifies_by=("pooler.",),
    ),
    Architecture(
        "modern-bert", ("modernbert",), _modern_bert, "attention.layer_norm_epsilon", GELU, ENCODER_HEADS,
        _modern_bert_limits, _write_modern_bert, _read_modern_bert, classifies_by=("pooler.",),
    ),
    Architecture(
        "nomic-bert", ("nomic_bert",), _nomic_bert, "attention.layer_norm_epsilon", heads=("embedding", "none"),
        limits=_bert_limits, write=_write_encoder, read=_read_nomic_bert,
    ),
    Architecture(
        "t5", ("t5", "mt5"), _t5, activations=("relu", *GELU), heads=("seq2seq",), limits=_t5_limits, write=_write_t5,
        read=_read_t5, scales_head=True, rotary=False,
    ),
)  # fmt: skip
"""The encoders, and T5."""
