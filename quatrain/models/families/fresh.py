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
        **_mixture(wanted["intermediate_size"], layers),
        **_latent(wanted["head_dim"]),
        "attention_multiplier": max(wanted["head_dim"], 1) ** -0.5,
        "position_buckets": min(256, wanted.get("max_position_embeddings", 256)),
        "is_decoder": head == "causal",
        "rotary_dim": min(64, wanted["head_dim"]),
        **wanted,
    }
    theirs = dict(family.fresh)
    theirs |= {key.theirs: values[key.ours] for key in family.keys if key.ours in values and key.choices is None}
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


def _mixture(width: int, layers: int) -> dict[str, Any]:
    """Keys of a small mixture of experts: two of eight for each token, together as wide as the dense network."""
    half = max(1, width // 2)
    return {
        "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": half, "shared_expert_intermediate_size": half, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": int(layers > 1), "norm_topk_prob": True,
    }  # fmt: skip


def _latent(width: int) -> dict[str, Any]:
    """Keys of latent attention for heads of this width, with the proportions of DeepSeek-V3's ranks."""
    rotated = max(2, width // 4 * 2)
    return {
        "qk_rope_head_dim": rotated, "qk_nope_head_dim": width - rotated, "v_head_dim": width,
        "kv_lora_rank": 4 * width, "q_lora_rank": 12 * width,
    }  # fmt: skip
