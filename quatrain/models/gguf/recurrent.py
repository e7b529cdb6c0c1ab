"""llama.cpp's architectures with recurrent layers, and how they map to our configuration and weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.weights import Operation, Rename, Split
from quatrain.models.gguf.architecture import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    HEAD_NORMS,
    Architecture,
    Metadata,
    named,
    without,
)
from quatrain.models.gguf.operations import PlusOne, Recurrent
from quatrain.models.transformer.config import ModelConfig

MIXER = "layers.{n}.mixer."


def _write_state(config: ModelConfig) -> dict[str, Any]:
    """The sizes of the recurrent layers."""
    return {
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.inner_size": config.recurrent_heads * config.recurrent_head_dim,
        "ssm.state_size": config.recurrent_state_size,
        "ssm.time_step_rank": config.recurrent_heads,
        "ssm.group_count": config.recurrent_groups,
    }


def _read_state(own: Metadata) -> dict[str, Any]:
    names = [f"ssm.{name}" for name in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")]
    if missing := [f"{name}: missing" for name in names if not own.get(name)]:
        raise InputError("This file does not describe its recurrent layers:", missing)
    kernel, inner, state, heads, groups = (own[name] for name in names)
    return {
        "conv_kernel": kernel,
        "recurrent_heads": heads,
        "recurrent_head_dim": inner // heads,
        "recurrent_state_size": state,
        "recurrent_groups": groups,
    }


def _channels(config: ModelConfig) -> int:
    keyed = 2 * config.recurrent_groups * config.recurrent_state_size
    return config.recurrent_heads * config.recurrent_head_dim + keyed


def _convolution(config: ModelConfig) -> tuple[int, ...]:
    return (_channels(config), config.conv_kernel)


def _column(config: ModelConfig) -> tuple[int, ...]:
    return (config.recurrent_heads, 1)


def _by_group(config: ModelConfig) -> tuple[int, ...]:
    return (config.recurrent_groups, -1)


def _mamba2(config: ModelConfig) -> list[Operation]:
    layer = {"attn_norm": "input_layernorm", "ssm_in": "mixer.in_proj", "ssm_out": "mixer.o_proj"}
    return [
        *named(EMBEDDINGS, layer),
        Recurrent("blk.{n}.ssm_conv1d.weight", f"{MIXER}conv.weight", shape=_convolution),
        Rename("blk.{n}.ssm_conv1d.bias", f"{MIXER}conv.bias"),
        Rename("blk.{n}.ssm_dt.bias", f"{MIXER}dt_bias"),
        Recurrent("blk.{n}.ssm_a", f"{MIXER}A_log", decay=True, shape=_column),
        Recurrent("blk.{n}.ssm_d", f"{MIXER}D", shape=_column),
        Recurrent("blk.{n}.ssm_norm.weight", f"{MIXER}norm.weight", shape=_by_group),
    ]


def _mamba2_limits(config: ModelConfig) -> Iterator[str]:
    if config.recurrent_bias:
        yield "use_bias: llama.cpp has none for mamba2"
    if not config.conv_bias:
        yield "use_conv_bias false: llama.cpp needs the bias of mamba2's convolution"
    if config.step_limits != (0.0, float("inf")):
        yield f"time_step_limit {config.step_limits}: llama.cpp has none"


def _write_mamba2(config: ModelConfig) -> dict[str, Any]:
    return _write_state(config) | {"feed_forward_length": 0}


def _read_mamba2(own: Metadata) -> dict[str, Any]:
    return {
        **_read_state(own),
        "conv_bias": True,
        "intermediate_size": 0,
        "layer_types": ("mamba2",) * own["block_count"],
        "num_attention_heads": 0,
        "num_key_value_heads": 0,
        "head_dim": 0,
    }


def _qwen35(config: ModelConfig) -> list[Operation]:
    norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    layer = without(ATTENTION | FEED_FORWARD, "attn_norm", "ffn_norm", "attn_q")
    joined = ("layers.{n}.self_attn.q_proj.weight", "layers.{n}.self_attn.gate_proj.weight")
    return [
        *named({name: EMBEDDINGS[name] for name in ("token_embd", "output")}, layer),
        *named({"output_norm": "norm"}, norms | HEAD_NORMS, PlusOne),
        Split("blk.{n}.attn_q.weight", joined, parts="interleaved"),
        Recurrent("blk.{n}.attn_qkv.weight", f"{MIXER}qkv_proj.weight", tiled="channels"),
        Recurrent("blk.{n}.attn_gate.weight", f"{MIXER}z_proj.weight", tiled="channels"),
        Recurrent("blk.{n}.ssm_beta.weight", f"{MIXER}beta_proj.weight", tiled="rows"),
        Recurrent("blk.{n}.ssm_alpha.weight", f"{MIXER}decay_proj.weight", tiled="rows"),
        Recurrent("blk.{n}.ssm_conv1d.weight", f"{MIXER}conv.weight", shape=_convolution, tiled="channels"),
        Recurrent("blk.{n}.ssm_dt.bias", f"{MIXER}dt_bias", tiled="rows"),
        Recurrent("blk.{n}.ssm_a", f"{MIXER}A_log", decay=True, tiled="rows"),
        Rename("blk.{n}.ssm_norm.weight", f"{MIXER}norm.weight"),
        Recurrent("blk.{n}.ssm_out.weight", f"{MIXER}o_proj.weight", tiled="columns"),
    ]


def _qwen35_limits(config: ModelConfig) -> Iterator[str]:
    if config.recurrent_head_dim != config.recurrent_state_size:
        yield "linear_value_head_dim: llama.cpp needs that of keys, linear_key_head_dim"
    kinds = ["gated_delta" if (layer + 1) % _interval(config) else "full" for layer in range(config.num_hidden_layers)]
    if list(config.layer_types) != kinds:
        yield "layer_types: llama.cpp computes attention in layers at equal distances"


def _interval(config: ModelConfig) -> int:
    """After how many layers one with attention comes."""
    kinds = config.layer_types
    return kinds.index("full") + 1 if "full" in kinds else len(kinds) + 1


def _write_qwen35(config: ModelConfig) -> dict[str, Any]:
    pairs = (config.rotary_dim or config.head_dim) // 2
    return {
        **_write_state(config),
        "full_attention_interval": _interval(config),
        # The pairs that turn with a picture's time, height and width, in turns; a text has one position for all three.
        "rope.dimension_sections": [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0],
    }


def _read_qwen35(own: Metadata) -> dict[str, Any]:
    every = own.get("full_attention_interval", 4)
    kinds = tuple("gated_delta" if (layer + 1) % every else "full" for layer in range(own["block_count"]))
    return {**_read_state(own), "layer_types": kinds}


RECURRENT = (
    Architecture(
        "mamba2", ("mamba2",), _mamba2, limits=_mamba2_limits, write=_write_mamba2, read=_read_mamba2, rotary=False,
    ),
    Architecture(
        "qwen35", ("qwen3_5_text",), _qwen35, limits=_qwen35_limits, write=_write_qwen35, read=_read_qwen35,
    ),
)  # fmt: skip
"""The models with recurrent layers."""
