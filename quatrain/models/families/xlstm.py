"""xLSTM (Beck et al. 2024, arXiv 2405.04517) as in xLSTM 7B (arXiv 2503.13427): mLSTM and gated feed-forward layers."""

from __future__ import annotations

import math
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.mapping import Family, Head, Key
from quatrain.models.families.recurrent import recurrent_sizes, without_attention
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

CONTEXT = 8192
"""Tokens of the texts that xLSTM 7B was trained on; its config.json does not name it."""

SAME = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
"""Keys that repeat another one."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {key: config.get(key) or config.get(other) for other, key in SAME.items()}
    problems = [
        f"{other}: {config[other]}; contradicts {key} ({found[key]})"
        for other, key in SAME.items()
        if config.get(other) not in (None, found[key])
    ]
    problems += [f"{key}: missing; an xlstm config needs it" for key, value in found.items() if value is None]
    if problems:
        raise InputError("This xlstm config.json cannot be used:", problems)
    hidden, heads = found["hidden_size"], config.get("num_heads") or 8
    keys, values = (
        int(hidden * (config.get(f"{part}_dim_factor") or usual)) for part, usual in (("qk", 0.5), ("v", 1.0))
    )
    for name, width in (("qk", keys), ("v", values)):
        if width % heads or not width:
            problems.append(f"{name}_dim_factor: gives {width} channels; must be a multiple of num_heads ({heads})")
    if problems:
        raise InputError("This xlstm config.json cannot be used:", problems)
    multiple = config.get("ffn_round_up_to_multiple_of") or 64
    inner = hidden * (config.get("ffn_proj_factor") or 2.667)
    return {
        **without_attention("mlstm", found["num_hidden_layers"]),
        **found,
        "intermediate_size": int((inner + multiple - 1) // multiple * multiple),
        "recurrent_groups": heads,
        "recurrent_state_size": keys // heads,
        "recurrent_head_dim": values // heads,
        "max_position_embeddings": config.get("max_position_embeddings") or CONTEXT,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    hidden, inner = config.hidden_size, config.intermediate_size
    multiple = math.gcd(inner, 64)
    return {
        "hidden_size": hidden,
        "embedding_dim": hidden,
        "num_hidden_layers": config.num_hidden_layers,
        "num_blocks": config.num_hidden_layers,
        "qk_dim_factor": _factor(config.recurrent_heads * config.recurrent_state_size, hidden),
        "v_dim_factor": _factor(config.recurrent_heads * config.recurrent_head_dim, hidden),
        "ffn_proj_factor": _factor(inner, hidden) if multiple == 1 else inner / hidden,
        "ffn_round_up_to_multiple_of": multiple,
        "max_position_embeddings": config.max_position_embeddings,
    }


def _factor(width: int, hidden: int) -> float:
    """A factor of `hidden` whose product, rounded down, is `width`."""
    factor = width / hidden
    return factor if int(hidden * factor) == width else (width + 0.5) / hidden


def _from_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    found = recurrent_sizes(sizes, sizes["hidden_size"])
    heads = found["recurrent_heads"]
    if found["recurrent_head_dim"] % 2:
        line = f"hidden_size: {sizes['hidden_size']}; the keys of a head are half as wide as its values, which are odd"
        raise InputError("This model cannot have this configuration:", [line])
    own = {"tie_word_embeddings": False, "recurrent_groups": heads}  # transformers ties no weights of this family.
    return found | own | {"recurrent_state_size": found["recurrent_head_dim"] // 2}


BODY: list[Operation] = [
    Rename("embeddings.weight", "embed_tokens.weight"),
    Rename("blocks.{n}.norm_mlstm.weight", "layers.{n}.input_layernorm.weight"),
    *(
        Rename(f"blocks.{{n}}.mlstm_layer.{theirs}.weight", f"layers.{{n}}.mixer.{ours}.weight")
        for theirs, ours in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "ogate_preact": "output_gate",
                             "out_proj": "o_proj"}.items()
    ),
    *renames("blocks.{n}.mlstm_layer.igate_preact", "layers.{n}.mixer.input_gate"),
    *renames("blocks.{n}.mlstm_layer.fgate_preact", "layers.{n}.mixer.forget_gate"),
    Rename("blocks.{n}.mlstm_layer.multihead_norm.weight", "layers.{n}.mixer.norm_weight"),
    Rename("blocks.{n}.norm_ffn.weight", "layers.{n}.post_attention_layernorm.weight"),
    Rename("blocks.{n}.ffn.proj_up_gate.weight", "layers.{n}.mlp.gate_proj.weight"),
    Rename("blocks.{n}.ffn.proj_up.weight", "layers.{n}.mlp.up_proj.weight"),
    Rename("blocks.{n}.ffn.proj_down.weight", "layers.{n}.mlp.down_proj.weight"),
    Rename("out_norm.weight", "norm.weight"),
]  # fmt: skip

FAMILIES = (
    Family(
        name="xlstm",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("num_heads", "recurrent_heads", 8),
            Key("norm_eps", "norm_eps", 1e-6),
            Key("gate_soft_cap", "recurrent_gate_softcap", 15.0),
            Key("output_logit_soft_cap", "logit_softcap", 30.0),
        ),
        operations=BODY,
        heads={
            "causal": Head("xLSTMForCausalLM", [Rename("lm_head.weight", "lm_head.weight")]),
            "none": Head("xLSTMModel", prefix=""),
            "embedding": Head("xLSTMModel", prefix=""),
        },
        fixed={"position": "none", "norm": "rms", "feed_forward": "gated"},
        required={
            "add_out_norm": True,
            "eps": 1e-6,
            "tie_word_embeddings": False,
            "use_bias": False,
            "weight_mode": "single",
        },
        harmless=frozenset(
            {
                "autocast_kernel_dtype",
                "chunk_size",
                "chunkwise_kernel",
                "inference_state_dtype",
                "max_inference_chunksize",
                "mode",
                "norm_reduction_force_float32",
                "return_last_states",
                "sequence_kernel",
                "step_kernel",
            }
        ),
        read=_read,
        reads=frozenset(
            {
                "hidden_size",
                "num_hidden_layers",
                "qk_dim_factor",
                "v_dim_factor",
                "ffn_proj_factor",
                "ffn_round_up_to_multiple_of",
                "max_position_embeddings",
                *SAME,
            }
        ),
        write=_write,
        from_sizes=_from_sizes,
        prefix="backbone.",
    ),
)
