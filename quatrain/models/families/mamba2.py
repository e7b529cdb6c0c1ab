"""Mamba 2 (Dao & Gu 2024, arXiv 2405.21060): a decoder of state-space layers, without attention and feed-forward."""

from __future__ import annotations

import math
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.mapping import Family, Head, Key
from quatrain.models.families.recurrent import recurrent_sizes, without_attention
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

CONTEXT = 2048
"""Tokens of the texts that the published models were trained on; their config.json does not name it."""

STATE_SIZE = 64
"""Numbers of the state for each channel of a new model."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    hidden, expand = config["hidden_size"], config.get("expand") or 2
    heads, width = config.get("num_heads") or 128, config.get("head_dim") or 64
    problems = []
    if expand * hidden != heads * width:
        problems.append(f"expand: {expand}; expand * hidden_size must be num_heads * head_dim ({heads * width})")
    limits = config.get("time_step_limit") or [0.0, math.inf]
    numbers = [_number(limit) for limit in limits]
    if len(numbers) != 2 or any(number is None for number in numbers):
        problems.append(f"time_step_limit: {format_value(limits)}; must be two numbers")
    if problems:
        raise InputError("This mamba2 config.json cannot be used:", problems)
    return {
        **without_attention("mamba2", config["num_hidden_layers"]),
        "intermediate_size": 0,
        "step_limits": tuple(numbers),
        "max_position_embeddings": config.get("max_position_embeddings") or CONTEXT,
    }


def _from_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    own = {"intermediate_size": 0, "recurrent_state_size": STATE_SIZE, "recurrent_groups": 1}
    return recurrent_sizes(sizes, 2 * sizes["hidden_size"]) | own


def _number(value: Any) -> float | None:
    """A number of config.json, where transformers writes infinity as a table."""
    if isinstance(value, dict):
        return math.inf if value == INFINITY else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _write(config: ModelConfig) -> dict[str, Any]:
    limits = [INFINITY if limit == math.inf else limit for limit in config.step_limits]
    unlimited = config.step_limits == (0.0, math.inf)  # The default of transformers.
    inner = config.recurrent_heads * config.recurrent_head_dim
    return {
        "expand": inner // config.hidden_size if inner % config.hidden_size == 0 else inner / config.hidden_size,
        **({} if unlimited else {"time_step_limit": limits}),
        "max_position_embeddings": config.max_position_embeddings,
    }


INFINITY = {"__float__": "Infinity"}

BODY: list[Operation] = [
    Rename("embeddings.weight", "embed_tokens.weight"),
    Rename("layers.{n}.norm.weight", "layers.{n}.input_layernorm.weight"),
    *renames("layers.{n}.mixer.in_proj", "layers.{n}.mixer.in_proj"),
    *renames("layers.{n}.mixer.conv1d", "layers.{n}.mixer.conv"),
    *(Rename(f"layers.{{n}}.mixer.{name}", f"layers.{{n}}.mixer.{name}") for name in ("dt_bias", "A_log", "D")),
    Rename("layers.{n}.mixer.norm.weight", "layers.{n}.mixer.norm.weight"),
    *renames("layers.{n}.mixer.out_proj", "layers.{n}.mixer.o_proj"),
    Rename("norm_f.weight", "norm.weight"),
]

FAMILIES = (
    Family(
        name="mamba2",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("hidden_size", "hidden_size"),
            Key("num_hidden_layers", "num_hidden_layers"),
            Key("num_heads", "recurrent_heads", 128),
            Key("head_dim", "recurrent_head_dim", 64),
            Key("state_size", "recurrent_state_size", 128),
            Key("n_groups", "recurrent_groups", 8),
            Key("conv_kernel", "conv_kernel", 4),
            Key("use_conv_bias", "conv_bias", True),
            Key("use_bias", "recurrent_bias", False),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads={
            "causal": Head("Mamba2ForCausalLM", [Rename("lm_head.weight", "lm_head.weight")]),
            "none": Head("Mamba2Model", prefix=""),
            "embedding": Head("Mamba2Model", prefix=""),
        },
        fixed={"position": "none", "norm": "rms", "feed_forward": "none"},
        required={"hidden_act": "silu"},
        harmless=frozenset(
            {
                "chunk_size",
                "norm_before_gate",
                "rescale_prenorm_residual",
                "residual_in_fp32",
                "rms_norm",
                "time_step_floor",
                "time_step_max",
                "time_step_min",
                "time_step_rank",
            }
        ),
        read=_read,
        reads=frozenset({"expand", "time_step_limit", "max_position_embeddings"}),
        write=_write,
        from_sizes=_from_sizes,
        prefix="backbone.",
        old_names=(("embedding.weight", "embeddings.weight"),),
    ),
)
