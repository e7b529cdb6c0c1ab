"""nanochat (Karpathy 2025): norms without weights, squared ReLU, angles that turn backwards, a soft cap on the logits.

nanochat's own checkpoints are pickled, which is never read here. Its models in the form of transformers
(`karpathy/nanochat-d32`, or the output of transformers' conversion of a checkpoint) are safetensors.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.llama import CLASSIFIERS, LAYER_SIZES, heads
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
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
        }.items()
        for operation in renames(f"layers.{{n}}.{theirs}", f"layers.{{n}}.{ours}")
    ),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **rope.read_whole(config),
        "num_key_value_heads": key_value_heads(config),
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "logit_softcap": config.get("final_logit_softcapping", 15.0),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        "final_logit_softcapping": config.logit_softcap,
    }


FAMILIES = (
    Family(
        name="nanochat",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "relu2", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads=heads("NanoChat", spans=None, without=(*CLASSIFIERS, "token_classification")),
        fixed={
            "position": "rotary",
            "rotary_layout": "swapped",
            "embedding_norm": True,
            "norm": "rms_without_parameters",
            "query_key_norm": "head",
            "feed_forward": "plain",
        },
        harmless=frozenset({"attention_dropout"}),
        read=_read,
        reads=rope.KEYS | {"num_key_value_heads", "attention_bias", "final_logit_softcapping"},
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
