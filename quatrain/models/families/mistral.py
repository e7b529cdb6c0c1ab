"""Mistral (Jiang et al. 2023, arXiv 2310.06825), Ministral 8B (2024) and Ministral 3 (Mistral AI 2025).

Llama with sliding-window attention in every layer (Mistral) or in chosen ones (Ministral). Ministral 3 has YaRN, and
its queries grow with the position. From a Mistral 3 that reads images only the text model, a Mistral or a Ministral 3,
is loaded, and saved as such.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
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


DEFAULT_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""The rotary positions of a Ministral 3 whose config.json names none."""

IMAGES = {"mistral3": "text_config"}
"""Models that read images, and the key of their config.json that holds the text model's."""

IMAGE_PREFIXES = ("language_model.model.", "model.language_model.")
IMAGE_WEIGHTS = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)


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


def _read_ministral(config: dict[str, Any]) -> dict[str, Any]:
    kind = rope.LAYER_TYPES[config.get("sliding_window", 4096) is not None]
    return {**_read(config), "layer_types": rope.layer_types(config, [kind] * config["num_hidden_layers"])}


def _write_ministral(config: ModelConfig) -> dict[str, Any]:
    return {**_write(config), "layer_types": rope.written_layer_types(config)}


def _read_ministral3(config: dict[str, Any]) -> dict[str, Any]:
    table = dict(config.get("rope_parameters") or DEFAULT_ROPE)
    growth, longest = table.pop("llama_4_scaling_beta", None), table.pop("max_position_embeddings", None)
    if longest not in (None, config.get("max_position_embeddings", longest)):
        raise InputError(f"rope_parameters: max_position_embeddings {longest}; contradicts config.json's.")
    read = rope.read_whole({**config, "rope_parameters": table})
    if read["rope_scaling"] is None or read["rope_scaling"].kind != "yarn":
        raise InputError("rope_type: a ministral3 model needs yarn scaling, by which its queries grow.")
    if growth is not None and (isinstance(growth, bool) or not isinstance(growth, int | float) or growth < 0):
        raise InputError(f"llama_4_scaling_beta: {growth!r}; must be a number of at least 0.")
    return {
        **read,
        "num_key_value_heads": key_value_heads(config, 8),
        "sliding_window": config.get("sliding_window"),
        "query_growth": float(growth or 0.0),
    }


def _write_ministral3(config: ModelConfig) -> dict[str, Any]:
    rotary = rope.written_parameters(config) | {"llama_4_scaling_beta": config.query_growth}
    return {
        "rope_parameters": rotary,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
    }


KEYS = (
    *SIZES,
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("hidden_act", "activation", "silu", ACTIVATIONS),
    Key("tie_word_embeddings", "tie_word_embeddings", False),
)

FAMILIES = (
    Family(
        name="mistral",
        keys=(*KEYS, Key("max_position_embeddings", "max_position_embeddings", 131072)),
        operations=BODY,
        heads=heads("Mistral", spans="model."),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "sliding_window"},
        write=_write,
        prefix="model.",
        nested_in=IMAGES,
        other_prefixes=IMAGE_PREFIXES,
        aliases={"language_model.lm_head.weight": "lm_head.weight"},
        ignored=(r".*rotary_emb\.inv_freq", *IMAGE_WEIGHTS),
    ),
    Family(
        name="ministral",
        keys=(*KEYS, Key("max_position_embeddings", "max_position_embeddings", 131072)),
        operations=BODY,
        heads=heads("Ministral"),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}),
        read=_read_ministral,
        reads=rope.KEYS | {"num_key_value_heads", "sliding_window", "layer_types"},
        write=_write_ministral,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
    Family(
        name="ministral3",
        keys=(
            *(key for key in KEYS if key.theirs not in ("head_dim", "rms_norm_eps")),
            Key("head_dim", "head_dim", 128),
            Key("rms_norm_eps", "norm_eps", 1e-5),
            Key("max_position_embeddings", "max_position_embeddings", 262144),
        ),
        operations=BODY,
        heads=heads("Ministral3", spans="model."),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout"}),
        read=_read_ministral3,
        reads=rope.KEYS | {"num_key_value_heads", "sliding_window"},
        write=_write_ministral3,
        prefix="model.",
        nested_in=IMAGES,
        other_prefixes=IMAGE_PREFIXES,
        aliases={"language_model.lm_head.weight": "lm_head.weight"},
        ignored=(r".*rotary_emb\.inv_freq", *IMAGE_WEIGHTS),
    ),
)
