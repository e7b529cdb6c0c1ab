"""StarCoder 2 (Lozhkov et al. 2024, arXiv 2402.19173): LayerNorm, rotary positions, a plain feed-forward."""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.mistral import key_value_heads
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
            "self_attn.o_proj": "self_attn.o_proj",
            "mlp.c_fc": "mlp.up_proj",
            "mlp.c_proj": "mlp.down_proj",
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
        }.items()
        for operation in renames(f"layers.{{n}}.{theirs}", f"layers.{{n}}.{ours}")
    ),
    *renames("norm", "norm"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    biased = config.get("use_bias") is not False
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config, 2),
        "sliding_window": config.get("sliding_window"),
        "attention_bias": "all" if biased else "none",
        "feed_forward_bias": biased,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "use_bias": config.feed_forward_bias,
    }


FAMILIES = (
    Family(
        name="starcoder2",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 4096),
            Key("norm_epsilon", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "gelu_pytorch_tanh", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads=heads("Starcoder2", spans=None),
        fixed={"position": "rotary", "norm": "layer", "feed_forward": "plain"},
        required={"norm_type": "layer_norm", "mlp_type": "default"},
        harmless=frozenset({"attention_dropout", "residual_dropout", "embedding_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "sliding_window", "use_bias"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
