"""DeepSeek-V3 and R1 (Liu et al. 2024, arXiv 2412.19437): latent attention, a sigmoid router with balancing biases and
groups, a shared expert, dense first layers.

The layers after the last one predict further tokens (multi-token prediction): they are kept and written back.
"""

from __future__ import annotations

import re
from typing import Any

from quatrain.models.families import rope
from quatrain.models.families.experts import (
    ATTENTION,
    DENSE,
    OUTPUT_KEYS,
    SAME_NAMES,
    TRAINING,
    expert_weights,
    experts_of,
    first,
    shared_weights,
    training_fields,
    training_keys,
)
from quatrain.models.families.llama import LAYER_SIZES, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ExpertsConfig, LatentConfig, ModelConfig

SIZES = {
    "kv_rank": ("kv_lora_rank", 512),
    "rope_dim": ("qk_rope_head_dim", 64),
    "nope_dim": ("qk_nope_head_dim", 128),
    "value_dim": ("v_head_dim", 128),
}
"""Our sizes of latent attention, and their keys and defaults."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    sizes = {ours: first(config, default, key) for ours, (key, default) in SIZES.items()}
    rank = config.get("q_lora_rank", 1536)
    latent = LatentConfig(**sizes, query_rank=rank or 0, interleaved=bool(first(config, True, "rope_interleave")))
    width = first(config, 2048, "moe_intermediate_size")
    dense = min(first(config, 3, "first_k_dense_replace"), config["num_hidden_layers"])
    return {
        **rope.read(config),
        "num_key_value_heads": config["num_attention_heads"],
        "attention_bias": "all" if config.get("attention_bias") else "none",
        "latent": latent,
        "head_dim": latent.nope_dim + latent.rope_dim,
        "rotary_dim": latent.rope_dim,
        "experts": ExpertsConfig(
            num_experts=first(config, 256, "n_routed_experts", "num_local_experts"),
            experts_per_token=first(config, 8, "num_experts_per_tok"),
            intermediate_size=width,
            router="sigmoid",
            renormalize=bool(first(config, True, "norm_topk_prob")),
            scale=float(first(config, 2.5, "routed_scaling_factor")),
            groups=first(config, 8, "n_group"),
            groups_per_token=first(config, 4, "topk_group"),
            shared_intermediate_size=width * first(config, 1, "n_shared_experts"),
            dense_layers=tuple(range(dense)),
            **training_fields(config, 0.0),
        ),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts, latent = experts_of(config), config.latent
    if latent is None:
        raise ValueError("a DeepSeek configuration without latent attention")
    return {
        **rope.write(config),
        "num_key_value_heads": config.num_key_value_heads,
        "attention_bias": config.attention_bias == "all",
        **{key: getattr(latent, ours) for ours, (key, _) in SIZES.items()},
        "q_lora_rank": latent.query_rank or None,
        "rope_interleave": latent.interleaved,
        "n_routed_experts": experts.num_experts,
        "num_experts_per_tok": experts.experts_per_token,
        "moe_intermediate_size": experts.intermediate_size,
        "norm_topk_prob": experts.renormalize,
        "routed_scaling_factor": experts.scale,
        "n_group": experts.groups,
        "topk_group": experts.groups_per_token,
        "n_shared_experts": experts.shared_intermediate_size // experts.intermediate_size,
        "first_k_dense_replace": len(experts.dense_layers),
        **training_keys(experts),
    }


def _attention() -> list[Operation]:
    names = {"q_a_proj": ("weight", "bias"), "kv_a_proj_with_mqa": ("weight", "bias"), "q_b_proj": ("weight",)}
    names |= {"kv_b_proj": ("weight",), "q_a_layernorm": ("weight",), "kv_a_layernorm": ("weight",)}
    kept = [operation for operation in ATTENTION if not re.search(r"[kv]_proj\.|q_proj\.bias", operation.theirs)]
    return kept + [
        operation
        for name, leaves in names.items()
        for operation in renames(f"layers.{{n}}.self_attn.{name}", f"layers.{{n}}.self_attn.{name}", leaves)
    ]


def _is_further(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of the files belongs to the layers of multi-token prediction, after the model's last one."""
    found = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
    return found is not None and int(found[1]) >= config.num_hidden_layers


BIAS = "mlp.gate.e_score_correction_bias"

FAMILIES = (
    Family(
        name="deepseek_v3",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 4096),
            Key("rms_norm_eps", "norm_eps", 1e-6),
            Key("hidden_act", "activation", "silu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=[
            *_attention(),
            *DENSE,
            *expert_weights(SAME_NAMES),
            Rename(f"layers.{{n}}.{BIAS}", f"layers.{{n}}.{BIAS}"),
            *shared_weights("shared_experts"),
        ],
        heads=heads("DeepseekV3", spans=None),
        fixed={"position": "rotary", "norm": "rms", "feed_forward": "gated"},
        required={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
        harmless=frozenset(
            {"attention_dropout", "num_nextn_predict_layers", "num_mtp_layers", "ep_size", "aux_loss_alpha", "seq_aux"}
        )
        | OUTPUT_KEYS,
        read=_read,
        reads=rope.KEYS
        | {key for key, _ in SIZES.values()}
        | {
            "num_key_value_heads",
            "attention_bias",
            "q_lora_rank",
            "rope_interleave",
            "n_routed_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "routed_scaling_factor",
            "n_group",
            "topk_group",
            "n_shared_experts",
            "first_k_dense_replace",
            "head_dim",
            "qk_head_dim",
            *TRAINING,
        },
        write=_write,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
        kept=_is_further,
    ),
)
