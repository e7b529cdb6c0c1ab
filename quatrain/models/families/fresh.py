"""A configuration of a family from sizes alone: what a recipe that trains from scratch asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.families.mapping import COMMON_KEYS
from quatrain.models.transformer.config import ModelConfig


def fresh_config(name: str, sizes: Mapping[str, Any], *, head: str | None = None) -> ModelConfig:
    """The configuration of a family with these fields of ours (`vocab_size`, `hidden_size`, …), else as it usually is.

    An encoder has the sizes of the decoder unless its own are given. Raises InputError, all at once, for what the
    family's config.json cannot say.
    """
    kind = get_family(name)
    wanted = dict(sizes)
    heads, layers = wanted["num_attention_heads"], wanted["num_hidden_layers"]
    wanted.setdefault("num_key_value_heads", heads)
    wanted.setdefault("head_dim", wanted["hidden_size"] // heads)
    every = {
        "num_encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_intermediate_size": wanted["intermediate_size"],
        "query_pre_attn_scalar": wanted["head_dim"],
        **wanted,
    }
    theirs = {key.theirs: every[key.ours] for key in kind.keys if key.ours in every and key.choices is None}
    theirs |= {key: every[key] for key in (*kind.reads, *COMMON_KEYS) if key in every}
    start = kind.from_hf(theirs | {"model_type": name}, head=head)
    if start.architecture == "encoder-decoder":
        wanted.setdefault("num_encoder_layers", layers)
        if start.decoder_start_token_id is None:
            tokens = (wanted.get(role) for role in ("pad_token_id", "bos_token_id"))
            wanted["decoder_start_token_id"] = next((token for token in tokens if token is not None), 0)
    config = start.replace(**wanted)
    again = kind.from_hf(kind.to_hf(config), head=config.head)
    if lost := [
        f"{field.name}: {getattr(config, field.name)!r}; a {name} model has {getattr(again, field.name)!r}"
        for field in fields(config)
        if field.compare and getattr(config, field.name) != getattr(again, field.name)
    ]:
        raise InputError(f"A {name} model cannot have this shape:", lost)
    return config
