"""Marian (Junczys-Dowmunt et al. 2018, arXiv 1804.00344): the opus-mt translation models.

The encoder-decoder of Vaswani et al. 2017 (arXiv 1706.03762) with sinusoidal positions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.models.families import bart
from quatrain.models.families.mapping import Family, Head
from quatrain.models.families.weights import Computed, Operation
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.positions import sinusoidal_table


def _table(config: ModelConfig) -> Tensor:
    """The position table that files may contain, (max_position_embeddings, hidden_size)."""
    return sinusoidal_table(config.max_position_embeddings, config.hidden_size)


def _body(config: ModelConfig) -> list[Operation]:
    # transformers expects the tables in files of the body and omits them in files of the translator.
    written = config.head == "none"
    return [
        *bart.embeddings(config),
        Computed("encoder.embed_positions.weight", _table, written),
        Computed("decoder.embed_positions.weight", _table, written),
        *bart.layers("encoder", "encoder.", "{e}"),
        *bart.layers("decoder", "", "{n}"),
    ]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    source, target = config["vocab_size"], config.get("decoder_vocab_size") or config["vocab_size"]
    shared = config.get("share_encoder_decoder_embeddings") is not False
    if shared and target != source:
        raise InputError(
            f"decoder_vocab_size: {target}; must be vocab_size ({source}), because encoder and decoder share their "
            "embedding (share_encoder_decoder_embeddings)."
        )
    fields = bart.read(config)
    fields |= {"vocab_size": target, "encoder_vocab_size": 0 if shared else source}
    start = config.get("decoder_start_token_id")
    return fields | {"decoder_start_token_id": config.get("pad_token_id") if start is None else start}


def _write(config: ModelConfig) -> dict[str, Any]:
    return bart.write(config) | {
        "vocab_size": config.encoder_vocab_size or config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": not config.encoder_vocab_size,
    }


FAMILIES = (
    Family(
        name="marian",
        keys=bart.KEYS,
        operations=_body,
        heads={
            "seq2seq": Head("MarianMTModel", bart.SEQ2SEQ, absent=bart.ABSENT),
            "none": Head("MarianModel", (), ""),
        },
        fixed=bart.FIXED | {"position": "sinusoidal", "position_offset": 0, "embedding_norm": False},
        required=bart.MUST
        | {"tie_word_embeddings": True, "normalize_embedding": False, "static_position_embeddings": True},
        harmless=bart.HARMLESS,
        read=_read,
        reads=bart.READS | {"decoder_vocab_size", "share_encoder_decoder_embeddings"},
        write=_write,
        prefix="model.",
        aliases={
            "model.encoder.embed_tokens.weight": "model.shared.weight",
            "model.decoder.embed_tokens.weight": "model.shared.weight",
        },
    ),
)
