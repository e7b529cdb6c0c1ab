"""Phi 1, 1.5 and 2 (Li et al. 2023, arXiv 2309.05463): parallel attention and feed-forward with one norm.

Partial rotary positions; every projection has a bias, including the vocabulary head.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("embed_tokens.weight", "embed_tokens.weight"),
    *(
        operation
        for theirs, ours in {
            "self_attn.q_proj": "self_attn.q_proj",
            "self_attn.k_proj": "self_attn.k_proj",
            "self_attn.v_proj": "self_attn.v_proj",
            "self_attn.dense": "self_attn.o_proj",
            "self_attn.q_layernorm": "self_attn.q_norm",
            "self_attn.k_layernorm": "self_attn.k_norm",
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
            "input_layernorm": "input_layernorm",
        }.items()
        for operation in renames(f"layers.{{n}}.{theirs}", f"layers.{{n}}.{ours}")
    ),
    *renames("final_layernorm", "norm"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read(config),
        "rotary_dim": rope.rotary_dim(config, 0.5),
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "query_key_norm": "head" if config.get("qk_layernorm") else "none",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "partial_rotary_factor": rope.partial_factor(config),
        "num_key_value_heads": config.num_key_value_heads,
        "qk_layernorm": config.query_key_norm == "head",
    }


FAMILIES = (
    Family(
        name="phi",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("layer_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "gelu_new", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads={
            **heads("Phi", spans=None),
            "causal": Head("PhiForCausalLM", renames("lm_head", "lm_head"), settings={"head_bias": "learned"}),
        },
        fixed={
            "position": "rotary",
            "norm": "layer",
            "residual": "parallel_shared",
            "attention_bias": "all",
            "feed_forward": "plain",
            "feed_forward_bias": True,
        },
        harmless=frozenset({"resid_pdrop", "embd_pdrop", "attention_dropout"}),
        read=_read,
        reads=rope.KEYS | {"partial_rotary_factor", "num_key_value_heads", "qk_layernorm"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
