"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with sliding-window attention in every layer."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import BODY, SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.transformer.config import ModelConfig


def key_value_heads(config: dict[str, Any], default: int | None = None) -> int:
    """The number of key and value heads: `default` if the key is missing, that of the queries if it is null or there
    is no default.
    """
    if "num_key_value_heads" not in config and default is not None:
        return default
    heads: int | None = config.get("num_key_value_heads")
    return config["num_attention_heads"] if heads is None else heads


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config, 8),
        "sliding_window": config.get("sliding_window", 4096),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
    }


FAMILIES = (
    Family(
        name="mistral",
        keys=(
            *SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 131072),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads=heads("Mistral", spans="model."),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "sliding_window"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
