"""The type of every key of a `config.json` that a family reads, checked before the value is used.

`null` is always accepted and means that the key is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.core.wording import format_value
from quatrain.models.transformer.config import MAX_EXPERTS, MAX_LAYERS, MAX_SIZE

MAX_LABELS = 1_000_000


@dataclass(frozen=True)
class ValueType:
    """The type of a key; `description` completes the message "must be …"."""

    description: str
    accepts: Callable[[Any], bool]


def _whole(least: int, most: int = MAX_SIZE) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _tokens(value: Any) -> bool:
    return TOKEN.accepts(value) or (isinstance(value, list) and bool(value) and all(map(TOKEN.accepts, value)))


SIZE = ValueType(f"a whole number from 1 to {MAX_SIZE:,}", _whole(1))
SIZE_OR_ZERO = ValueType(f"a whole number from 0 to {MAX_SIZE:,}", _whole(0))
LAYERS = ValueType(f"a whole number from 1 to {MAX_LAYERS:,}", _whole(1, MAX_LAYERS))
WHOLE = ValueType(f"a whole number from -1 to {MAX_SIZE:,}", _whole(-1))
ANY_WHOLE = ValueType("one whole number", _whole(-MAX_LAYERS - 1, MAX_LAYERS))
LIST = ValueType("a list", lambda value: isinstance(value, list | tuple))
LAYERS_OR_ZERO = ValueType(f"a whole number from 0 to {MAX_LAYERS:,}", _whole(0, MAX_LAYERS))
EXPERTS = ValueType(f"a whole number from 1 to {MAX_EXPERTS:,}", _whole(1, MAX_EXPERTS))
LABELS = ValueType(f"a whole number from 1 to {MAX_LABELS:,}", _whole(1, MAX_LABELS))
TOKEN = ValueType(f"a token id: a whole number from -1 to {MAX_SIZE:,}", _whole(-1))
TOKENS = ValueType("a token id or a list of them", _tokens)
POSITIVE = ValueType("a number above 0 (at most 1e18)", _number(1e-30, 1e18))
NOT_NEGATIVE = ValueType("a number of at least 0 (at most 1e18)", _number(0, 1e18))
SHARE = ValueType("a number above 0 and at most 1", _number(1e-9, 1))
FLAG = ValueType("true or false", lambda value: isinstance(value, bool))
TEXT = ValueType("a text", lambda value: isinstance(value, str))
TEXTS = ValueType(
    "a list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
)
LIST = ValueType("a list", lambda value: isinstance(value, list | tuple))
LAYER_NUMBERS = ValueType(
    "a list of layers, counted from 0",
    lambda value: isinstance(value, list) and all(SIZE_OR_ZERO.accepts(item) for item in value),
)
TEXT_OR_TEXTS = ValueType("a text or a list of texts", lambda value: TEXT.accepts(value) or TEXTS.accepts(value))
FLAGS = ValueType("a list of 0 and 1", lambda value: isinstance(value, list) and all(item in (0, 1) for item in value))
TABLE = ValueType("a table", lambda value: isinstance(value, dict))
TEXT_BY_NUMBER = ValueType(
    "a table of names whose keys are 0, 1, 2 and so on",
    lambda value: (
        isinstance(value, dict)
        and {str(key) for key in value} == {str(number) for number in range(len(value))}
        and all(isinstance(name, str | int | float) for name in value.values())
    ),
)

SIDES = ValueType(
    "a number of pixels, or a list of height and width",
    lambda value: (
        SIZE.accepts(value) or (isinstance(value, list) and len(value) == 2 and all(map(SIZE.accepts, value)))
    ),
)

COMMON: Mapping[str, ValueType] = {
    "model_type": TEXT,
    "architectures": TEXTS,
    "dtype": TEXT,
    "torch_dtype": TEXT,
    "id2label": TABLE,
    "num_labels": LABELS,
    "problem_type": TEXT,
    "initializer_range": NOT_NEGATIVE,
    "bos_token_id": TOKEN,
    "eos_token_id": TOKENS,
    "pad_token_id": TOKEN,
    "quantization_config": TABLE,
}
"""Types of the keys that every family reads."""

FIELDS: Mapping[str, ValueType] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "embedding_scale": POSITIVE,
    "residual_scale": POSITIVE,
    "rotary_dim": SIZE,
    "logit_scale": POSITIVE,
    "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_encoder_layers": LAYERS,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE,
    "encoder_attention_heads": SIZE,
    "encoder_intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "head_dim": SIZE,
    "embedding_size": SIZE,
    "sliding_window": SIZE,
    "relative_buckets": SIZE,
    "relative_max_distance": SIZE,
    "type_vocab_size": SIZE_OR_ZERO,
    "recurrent_heads": SIZE,
    "recurrent_head_dim": SIZE,
    "recurrent_state_size": SIZE,
    "recurrent_groups": SIZE,
    "recurrent_bias": FLAG,
    "recurrent_gate_softcap": POSITIVE,
    "logit_softcap": POSITIVE,
    "conv_kernel": SIZE,
    "conv_bias": FLAG,
    "norm_eps": POSITIVE,
    "initializer_range": NOT_NEGATIVE,
    "tie_word_embeddings": FLAG,
    "feed_forward_bias": FLAG,
    "pooler_bias": FLAG,
    "projection_size": SIZE,
    "activation": TEXT,
}
"""Types of `ModelConfig` fields that a family maps to one key."""

READ: Mapping[str, ValueType] = {
    "_num_labels": LABELS,
    "_remove_final_layer_norm": FLAG,
    "_sliding_window_pattern": SIZE,
    "add_cross_attention": FLAG,
    "alibi": FLAG,
    "attention_bias": FLAG,
    "attention_k_eq_v": FLAG,
    "attention_layers": TEXTS,
    "attention_multiplier": POSITIVE,
    "attention_types": LIST,
    "attn_logit_softcapping": POSITIVE,
    "auto_map": TABLE,
    "bias": FLAG,
    "classifier_activation": TEXT,
    "classifier_pooling": TEXT,
    "conv_act": TEXT,
    "conv_kernel_size": SIZE_OR_ZERO,
    "decoder": TABLE,
    "decoder_bias": FLAG,
    "decoder_sparse_step": SIZE,
    "decoder_start_token_id": TOKEN,
    "decoder_vocab_size": SIZE,
    "dense_act_fn": TEXT,
    "do_layer_norm_before": FLAG,
    "embedding_dim": SIZE,
    "embedding_multiplier": POSITIVE,
    "encoder": TABLE,
    "enable_bias": FLAG,
    "enable_moe_block": FLAG,
    "expand": POSITIVE,
    "expert_capacity_factor": POSITIVE,
    "experts_per_token": EXPERTS,
    "feed_forward_proj": TEXT,
    "ffn_hidden_size": SIZE,
    "ffn_proj_factor": POSITIVE,
    "ffn_round_up_to_multiple_of": SIZE,
    "final_logit_softcapping": POSITIVE,
    "first_k_dense_replace": LAYERS_OR_ZERO,
    "force_bos_token_to_be_generated": FLAG,
    "full_attention_interval": SIZE,
    "full_attn_mod": SIZE,
    "global_attn_every_n_layers": SIZE,
    "global_head_dim": SIZE,
    "global_rope_theta": POSITIVE,
    "head_dim": SIZE,
    "hidden_size": SIZE,
    "hidden_size_per_layer_input": SIZE_OR_ZERO,
    "image_seq_length": SIZE,
    "image_size": SIDES,
    "image_token_id": TOKEN,
    "image_token_index": TOKEN,
    "intermediate_size": SIZE,
    "interpolate_factor": POSITIVE,
    "is_decoder": FLAG,
    "is_encoder_decoder": FLAG,
    "is_gated_act": FLAG,
    "kv_lora_rank": SIZE,
    "layer_norm_elementwise_affine": FLAG,
    "layer_types": TEXTS,
    "local_rope_theta": POSITIVE,
    "logits_scaling": POSITIVE,
    "max_position_embeddings": SIZE,
    "max_relative_positions": WHOLE,
    "max_source_positions": SIZE,
    "max_window_layers": LAYERS_OR_ZERO,
    "mlp_only_layers": LAYER_NUMBERS,
    "moe_intermediate_size": SIZE,
    "multi_query": FLAG,
    "multimodal_projector_bias": FLAG,
    "n_ctx": SIZE,
    "n_embed": SIZE,
    "n_group": EXPERTS,
    "n_head": SIZE,
    "n_head_kv": SIZE,
    "n_inner": SIZE,
    "n_layer": LAYERS,
    "n_positions": SIZE,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": EXPERTS,
    "new_decoder_architecture": FLAG,
    "no_rope_layer_interval": SIZE,
    "no_rope_layers": FLAGS,
    "norm_bias": FLAG,
    "norm_rel_ebd": TEXT,
    "norm_topk_prob": FLAG,
    "num_attention_heads": SIZE,
    "num_blocks": LAYERS,
    "num_channels": SIZE,
    "num_decoder_layers": LAYERS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": EXPERTS,
    "num_global_key_value_heads": SIZE,
    "num_hidden_groups": LAYERS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": SIZE,
    "num_kv_heads": SIZE,
    "num_kv_shared_layers": LAYERS_OR_ZERO,
    "num_ln_in_parallel_attn": SIZE,
    "num_local_experts": EXPERTS,
    "num_mel_bins": SIZE,
    "original_max_position_embeddings": SIZE,
    "parallel_attn": FLAG,
    "partial_rotary_factor": SHARE,
    "patch_size": SIDES,
    "per_layer_config": TABLE,
    "pooler_act": TEXT,
    "pooler_hidden_size": SIZE,
    "pooler_output_size": SIZE,
    "pos_att_type": TEXT_OR_TEXTS,
    "position_biased_input": FLAG,
    "position_buckets": WHOLE,
    "projection_dim": SIZE,
    "projector_hidden_act": TEXT,
    "text_config": TABLE,
    "vision_config": TABLE,
    "vision_feature_layer": ANY_WHOLE,
    "vision_feature_select_strategy": TEXT,
    "vocab_size": SIZE,
    "pretraining_tp": SIZE,
    "q_lora_rank": SIZE,
    "qk_dim_factor": POSITIVE,
    "qk_head_dim": SIZE,
    "qk_layernorm": FLAG,
    "qk_nope_head_dim": SIZE,
    "qk_rope_head_dim": SIZE,
    "qkv_bias": FLAG,
    "query_pre_attn_scalar": POSITIVE,
    "relative_attention": FLAG,
    "residual_multiplier": POSITIVE,
    "rope_interleave": FLAG,
    "rope_local_base_freq": POSITIVE,
    "rope_parameters": TABLE,
    "rope_scaling": TABLE,
    "rope_theta": POSITIVE,
    "rotary_emb_base": POSITIVE,
    "rotary_pct": SHARE,
    "routed_scaling_factor": POSITIVE,
    "router_aux_loss_coef": NOT_NEGATIVE,
    "router_bias_update_rate": NOT_NEGATIVE,
    "router_z_loss_coef": NOT_NEGATIVE,
    "scale_attn_by_inverse_layer_idx": FLAG,
    "scale_attn_weights": FLAG,
    "scale_decoder_outputs": FLAG,
    "scale_embedding": FLAG,
    "seq_length": SIZE,
    "share_att_key": FLAG,
    "share_encoder_decoder_embeddings": FLAG,
    "shared_expert_intermediate_size": SIZE,
    "sliding_window": SIZE_OR_ZERO,
    "sliding_window_pattern": SIZE,
    "slow_but_exact": FLAG,
    "swiglu_limit": POSITIVE,
    "tie_word_embeddings": FLAG,
    "time_step_limit": LIST,
    "top_k_experts": EXPERTS,
    "topk_group": EXPERTS,
    "use_bias": FLAG,
    "use_bidirectional_attention": FLAG,
    "use_double_wide_mlp": FLAG,
    "use_parallel_residual": FLAG,
    "use_qkv_bias": FLAG,
    "use_sliding_window": FLAG,
    "v_dim_factor": POSITIVE,
    "v_head_dim": SIZE,
    "vocab_size_per_layer_input": SIZE,
    "window_size": SIZE,
    "word_embed_proj_dim": SIZE,
}
"""Types of the keys that a family's `read` function uses. A key has the same type in every family."""


def type_errors(config: Mapping[str, Any], types: Mapping[str, ValueType]) -> Iterator[str]:
    """A problem for each key of a config.json whose value has the wrong type."""
    for key, value_type in types.items():
        value = config.get(key)
        if value is not None and not value_type.accepts(value):
            yield f"{key}: {format_value(value)}; must be {value_type.description}"
