"""Phi-3, 3.5 and 4 (Abdin et al. 2024, arXiv 2404.14219): Llama with fused projections in its files.

LongRoPE for long texts; Phi-4-mini has partial rotary positions.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.llama import SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
from quatrain.models.families.weights import Rename, Split
from quatrain.models.transformer.config import ModelConfig

ORIGINAL_LENGTH = 4096
"""Default context length of pre-training, in tokens."""

OLD_NAMES = {"su": "longrope", "yarn": "longrope"}
"""Names of LongRoPE in the first config.json files."""

UNUSED = ("interpolate_factor", "full_attn_mod")
"""Options of Phi-4-mini's config.json that have no effect with the value 1, the only one in use."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    problems = [f"{name}: {config[name]!r}; must be 1" for name in UNUSED if config.get(name) not in (None, 1)]
    if problems:
        raise InputError("This phi3 config.json cannot be used:", problems)
    rotary = rope.rotary_dim(config, 1.0)
    original = config.get("original_max_position_embeddings") or ORIGINAL_LENGTH
    read = rope.read({**config, "original_max_position_embeddings": original}, names=OLD_NAMES)
    if read["rope_scaling"] is not None and read["rope_scaling"].kind != "longrope":
        raise InputError(f"rope_type: {read['rope_scaling'].kind!r}; a phi3 model supports default and longrope.")
    return {
        **read,
        "rotary_dim": 0 if rotary == rope.rotary_dim(_without_rope(config), 1.0) else rotary,
        "num_key_value_heads": key_value_heads(config),
        "sliding_window": config.get("sliding_window"),
    }


def _without_rope(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in rope.KEYS}


def _write(config: ModelConfig) -> dict[str, Any]:
    written = {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
    }
    if config.rotary_dim:
        written["partial_rotary_factor"] = rope.partial_factor(config)
    if config.rope_scaling is not None:
        written["original_max_position_embeddings"] = config.rope_scaling.get("original_max_position_embeddings")
    return written


FAMILIES = (
    Family(
        name="phi3",
        keys=(
            *SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 4096),
            Key("rms_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=[
            Rename("embed_tokens.weight", "embed_tokens.weight"),
            Split(
                "layers.{n}.self_attn.qkv_proj.weight",
                tuple(f"layers.{{n}}.self_attn.{name}_proj.weight" for name in "qkv"),
                parts="grouped",
            ),
            Rename("layers.{n}.self_attn.o_proj.weight", "layers.{n}.self_attn.o_proj.weight"),
            Split(
                "layers.{n}.mlp.gate_up_proj.weight",
                ("layers.{n}.mlp.gate_proj.weight", "layers.{n}.mlp.up_proj.weight"),
            ),
            Rename("layers.{n}.mlp.down_proj.weight", "layers.{n}.mlp.down_proj.weight"),
            Rename("layers.{n}.input_layernorm.weight", "layers.{n}.input_layernorm.weight"),
            Rename("layers.{n}.post_attention_layernorm.weight", "layers.{n}.post_attention_layernorm.weight"),
            Rename("norm.weight", "norm.weight"),
        ],
        heads=heads("Phi3", spans=None),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        harmless=frozenset({"attention_dropout", "resid_pdrop", "embd_pdrop", "original_max_position_embeddings"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "sliding_window", "auto_map", *UNUSED},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
