"""Builds the configuration of a new model from its family and sizes, for training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.families.mapping import COMMON_KEYS
from quatrain.models.transformer.config import ModelConfig


def fresh_config(name: str, sizes: Mapping[str, Any], *, head: str | None = None) -> ModelConfig:
    """A configuration with these fields of `ModelConfig` (`vocab_size`, `hidden_size`, …) and the family's defaults.

    The encoder of an encoder-decoder has the sizes of the decoder by default. Raises InputError, with all problems, for
    fields that the family's config.json cannot express.
    """
    family = get_family(name)
    wanted = dict(sizes)
    heads, layers = wanted["num_attention_heads"], wanted["num_hidden_layers"]
    wanted.setdefault("num_key_value_heads", heads)
    wanted.setdefault("head_dim", wanted["hidden_size"] // heads)
    if family.from_sizes is not None:
        wanted = family.from_sizes(wanted)
    values = {
        "num_encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_intermediate_size": wanted["intermediate_size"],
        "query_pre_attn_scalar": wanted["head_dim"],
        **wanted,
    }
    theirs = {key.theirs: values[key.ours] for key in family.keys if key.ours in values and key.choices is None}
    theirs |= {key: values[key] for key in (*family.reads, *COMMON_KEYS) if key in values}
    start = family.from_hf(theirs | {"model_type": name}, head=head)
    if start.architecture == "encoder-decoder":
        wanted.setdefault("num_encoder_layers", layers)
        if start.decoder_start_token_id is None:
            tokens = (wanted.get(role) for role in ("pad_token_id", "bos_token_id"))
            wanted["decoder_start_token_id"] = next((token for token in tokens if token is not None), 0)
    config = start.replace(**wanted)
    reread = family.from_hf(family.to_hf(config), head=config.head)
    if problems := [
        f"{field.name}: {getattr(config, field.name)!r}; a {name} model has {getattr(reread, field.name)!r}"
        for field in fields(config)
        if field.compare and getattr(config, field.name) != getattr(reread, field.name)
    ]:
        raise InputError(f"A {name} model cannot have this configuration:", problems)
    return config
