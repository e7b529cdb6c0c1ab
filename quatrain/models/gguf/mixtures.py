"""llama.cpp's architectures of mixtures of experts, and how they map to our configuration and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.weights import Operation, Rename, Stacked
from quatrain.models.gguf.architecture import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    HEAD_NORMS,
    LEAVES,
    Architecture,
    Metadata,
    even_heads,
    ignores_windows,
    named,
    no_attention_bias,
    pairwise_decoder,
    pattern_of,
    read_biases,
    rounded,
    without,
)
from quatrain.models.gguf.decoders import read_granite, write_granite
from quatrain.models.gguf.operations import Latent
from quatrain.models.transformer.config import ExpertsConfig, LatentConfig, ModelConfig

PROJECTIONS = ("gate", "up", "down")
EXPERTS: list[Operation] = [
    Stacked(f"blk.{{n}}.ffn_{name}_exps.{leaf}", (f"layers.{{n}}.mlp.experts.{{x}}.{name}_proj.{leaf}",))
    for name in PROJECTIONS
    for leaf in LEAVES
]
SHARED = {f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in PROJECTIONS}
ROUTER = {"ffn_gate_inp": "mlp.gate"}
NORM = {"ffn_norm": FEED_FORWARD["ffn_norm"]}


def _mixture(config: ModelConfig) -> list[Operation]:
    """Qwen's, and OLMoE's."""
    gate = {"ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
    return [*named(EMBEDDINGS, ATTENTION | NORM | HEAD_NORMS | SHARED | ROUTER | gate), *EXPERTS]


def _pairwise(config: ModelConfig) -> list[Operation]:
    """Llama, Mixtral and Granite: rotary embeddings of neighbouring channels; with experts or without."""
    return [*pairwise_decoder(config), *(named({}, ROUTER) + EXPERTS if config.experts is not None else [])]


def _gpt_oss(config: ModelConfig) -> list[Operation]:
    norm = {"post_attention_norm": FEED_FORWARD["ffn_norm"]}
    sinks = Rename("blk.{n}.attn_sinks.weight", "layers.{n}.self_attn.sinks")
    return [*named(EMBEDDINGS, ATTENTION | norm | ROUTER), sinks, *EXPERTS]


def _deepseek(config: ModelConfig) -> list[Operation]:
    layer = without(ATTENTION, "attn_k", "attn_v") | FEED_FORWARD | SHARED | ROUTER
    layer |= {
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    }
    latent = Latent(
        "blk.{n}.attn_k_b.weight", ("layers.{n}.self_attn.kv_b_proj.weight",), values="blk.{n}.attn_v_b.weight"
    )
    bias = Rename("blk.{n}.exp_probs_b.bias", "layers.{n}.mlp.gate.e_score_correction_bias")
    return [*named(EMBEDDINGS, layer), latent, bias, *EXPERTS]


def _expert_limits(normalized: bool) -> Callable[[ModelConfig], Iterator[str]]:
    """What llama.cpp fixes: experts in every layer, and whether the weights of the chosen ones sum to 1."""

    def limits(config: ModelConfig) -> Iterator[str]:
        experts = config.experts
        if experts is not None and experts.dense_layers:
            yield "mlp_only_layers, decoder_sparse_step: llama.cpp has experts in every layer"
        if experts is not None and experts.renormalize != normalized:
            yield f"norm_topk_prob {experts.renormalize}: llama.cpp computes {normalized} for {config.family}"
        yield from ignores_windows(config)

    return limits


def _write_experts(config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        return {}
    shared = experts.shared_intermediate_size
    return {
        "expert_count": experts.num_experts,
        "expert_used_count": experts.experts_per_token,
        "expert_feed_forward_length": experts.intermediate_size,
    } | ({"expert_shared_feed_forward_length": shared} if shared else {})


def _experts(own: Metadata, **fields: Any) -> ExpertsConfig:
    """The experts of a file, with what the architecture fixes."""
    if missing := [f"{key}: missing" for key in ("expert_count", "expert_used_count") if key not in own]:
        raise InputError("This file does not describe its experts:", missing)
    width = own.get("expert_feed_forward_length") or own["feed_forward_length"]
    return ExpertsConfig(own["expert_count"], own["expert_used_count"], width, balance_loss=0.001, **fields)


def _read_experts(normalized: bool) -> Callable[[Metadata], dict[str, Any]]:
    def read(own: Metadata) -> dict[str, Any]:
        shared = own.get("expert_shared_feed_forward_length", 0)
        return {
            "attention_bias": read_biases(own)["attention_bias"] if normalized else "qkv",
            "experts": _experts(own, renormalize=normalized, shared_intermediate_size=shared, shared_gate=bool(shared)),
        }

    return read


def _read_llama(own: Metadata) -> dict[str, Any]:
    return read_biases(own) | ({"experts": _experts(own)} if own.get("expert_count") else {})


def _llama_family(own: Metadata) -> str:
    return "mixtral" if own.get("llama.expert_count") else "llama"


def _olmoe_limits(config: ModelConfig) -> Iterator[str]:
    yield from _expert_limits(False)(config)
    yield from even_heads(config)
    yield from no_attention_bias(config)
    if config.num_key_value_heads != config.num_attention_heads:
        yield f"num_key_value_heads {config.num_key_value_heads}: llama.cpp needs as many as num_attention_heads"


def _read_olmoe(own: Metadata) -> dict[str, Any]:
    return {"experts": _experts(own, renormalize=False)}


def _write_granite_moe(config: ModelConfig) -> dict[str, Any]:
    return write_granite(config) | _write_experts(config)


def _read_granite_moe(own: Metadata) -> dict[str, Any]:
    return read_granite(own) | {"experts": _experts(own, router="softmax_of_chosen")}


CLAMP = 7.0
"""The limit of GPT-OSS's activation in llama.cpp."""


def _gpt_oss_limits(config: ModelConfig) -> Iterator[str]:
    kinds = tuple("full" if layer % 2 else "sliding" for layer in range(config.num_hidden_layers))
    if config.layer_types != kinds:
        yield "layer_types: llama.cpp computes full attention in every 2nd layer, sliding in the others"
    if config.attention_bias != "all":
        yield "attention_bias false: llama.cpp needs the biases of gpt-oss"
    if config.experts is not None and config.experts.clamp != CLAMP:
        yield f"swiglu_limit {config.experts.clamp}: llama.cpp computes {CLAMP}"


def _write_gpt_oss(config: ModelConfig) -> dict[str, Any]:
    return {"attention.sliding_window": config.sliding_window} | _write_experts(config)


def _read_gpt_oss(own: Metadata) -> dict[str, Any]:
    return {
        "sliding_window": own.get("attention.sliding_window", 128),
        "layer_types": pattern_of(own["block_count"], 2),
        "attention_bias": "all",
        "experts": _experts(own, router="softmax_of_chosen", bias=True, clamp=CLAMP),
    }


SIGMOID = 2
"""llama.cpp's number of a sigmoid router."""


def _deepseek_limits(config: ModelConfig) -> Iterator[str]:
    yield from no_attention_bias(config)
    latent, experts = config.latent, config.experts
    if latent is not None and not latent.interleaved:
        yield "rope_interleave false: llama.cpp rotates neighbouring channels"
    if config.norm_eps != 1e-6:
        yield f"rms_norm_eps {config.norm_eps}: the norms of latent attention have 1e-6, and llama.cpp has one number"
    if experts is not None and not experts.shared_intermediate_size:
        yield "n_shared_experts 0: llama.cpp needs a shared expert"
    scaling = config.rope_scaling
    if scaling is not None and scaling.get("mscale") != scaling.get("mscale_all_dim"):
        yield "mscale: llama.cpp computes that of mscale_all_dim"


def _write_deepseek(config: ModelConfig) -> dict[str, Any]:
    experts, latent = config.experts, config.latent
    if experts is None or latent is None:
        raise ValueError("a DeepSeek configuration without experts or latent attention")
    return {
        **_write_experts(config),
        "attention.head_count_kv": 1,  # The cache has one vector of a token for all heads.
        "attention.key_length": latent.kv_rank + latent.rope_dim,
        "attention.value_length": latent.kv_rank,
        "attention.key_length_mla": config.head_dim,
        "attention.value_length_mla": latent.value_dim,
        "attention.q_lora_rank": latent.query_rank,
        "attention.kv_lora_rank": latent.kv_rank,
        "leading_dense_block_count": len(experts.dense_layers),
        "expert_shared_count": experts.shared_intermediate_size // experts.intermediate_size,
        "expert_weights_scale": float(experts.scale),
        "expert_weights_norm": experts.renormalize,
        "expert_gating_func": SIGMOID,
        "expert_group_count": experts.groups,
        "expert_group_used_count": experts.groups_per_token,
    }


def _read_deepseek(own: Metadata) -> dict[str, Any]:
    if own.get("expert_gating_func") != SIGMOID:
        raise InputError("expert_gating_func: only DeepSeek-V3's sigmoid router (2) can be read; V2's is a softmax.")
    if "attention.key_length_mla" not in own:
        raise InputError("attention.key_length_mla: missing; the file is of an older llama.cpp. Convert it again.")
    rotated = own["rope.dimension_count"]
    width = own["attention.key_length_mla"]
    latent = LatentConfig(
        own["attention.kv_lora_rank"], rotated, width - rotated, own["attention.value_length_mla"],
        own.get("attention.q_lora_rank", 0),
    )  # fmt: skip
    experts = _experts(
        own,
        router="sigmoid",
        renormalize=own.get("expert_weights_norm", False),
        scale=rounded(own.get("expert_weights_scale", 1.0)),
        groups=own.get("expert_group_count", 1),
        groups_per_token=own.get("expert_group_used_count", 1),
        shared_intermediate_size=own["expert_shared_count"] * own["expert_feed_forward_length"],
        dense_layers=tuple(range(own.get("leading_dense_block_count", 0))),
    )
    return {
        "num_key_value_heads": own["attention.head_count"],
        "head_dim": width,
        "rotary_dim": rotated,
        "latent": latent,
        "experts": experts,
    }


MIXTURES = (
    Architecture(
        "llama", ("llama", "mistral", "ministral", "mixtral"), _pairwise, limits=ignores_windows, write=_write_experts,
        read=_read_llama, family_of=_llama_family,
    ),
    Architecture(
        "qwen2moe", ("qwen2_moe",), _mixture, limits=_expert_limits(False), write=_write_experts,
        read=_read_experts(False),
    ),
    Architecture(
        "qwen3moe", ("qwen3_moe",), _mixture, limits=_expert_limits(True), write=_write_experts,
        read=_read_experts(True),
    ),
    Architecture(
        "olmoe", ("olmoe",), _mixture, limits=_olmoe_limits, write=_write_experts, read=_read_olmoe,
    ),
    Architecture(
        "granitemoe", ("granitemoe",), _pairwise, write=_write_granite_moe, read=_read_granite_moe,
    ),
    Architecture(
        "gpt-oss", ("gpt_oss",), _gpt_oss, limits=_gpt_oss_limits, write=_write_gpt_oss, read=_read_gpt_oss,
    ),
    Architecture(
        "deepseek2", ("deepseek_v3",), _deepseek, limits=_deepseek_limits, write=_write_deepseek,
        read=_read_deepseek, yarn_multiplier=0.1,
    ),
)  # fmt: skip
"""The mixtures of experts, and Llama, whose architecture Mixtral shares."""
