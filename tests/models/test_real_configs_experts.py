"""The config.json files of published mixtures of experts: read, counted as transformers counts, written."""

import pytest
import torch
import transformers

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.planning import counts

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21, "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408, "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 60,
    "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16, "output_router_logits": False,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.39.0.dev0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
OLMOE = {
    "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None,
    "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": False,
    "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 50304,
}  # fmt: skip
GRANITE = {
    "architectures": ["GraniteMoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.1,
    "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
    "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 512,
    "logits_scaling": 6.0, "max_position_embeddings": 4096, "model_type": "granitemoe", "num_attention_heads": 16,
    "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
    "output_router_logits": False, "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 10000, "router_aux_loss_coef": 0.0, "tie_word_embeddings": True,
    "torch_dtype": "float32", "transformers_version": "4.46.0.dev0", "use_cache": True, "vocab_size": 49155,
}  # fmt: skip
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                       "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                     "rope_type": "yarn", "truncate": False},
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
    "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": 201088,
}  # fmt: skip
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
    "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip

PUBLISHED = [
    ("Mixtral 8x7B", MIXTRAL, 46_702_792_704, 12_879_925_248),
    ("Qwen1.5-MoE-A2.7B", QWEN2, 14_315_784_192, None),
    ("Qwen3-30B-A3B", QWEN3, 30_532_122_624, 3_353_032_704),
    ("OLMoE-1B-7B", OLMOE, 6_919_161_856, None),
    ("granite-3.0-1b-a400m", GRANITE, 1_334_628_352, None),
    ("gpt-oss-20b", GPT_OSS, 20_914_757_184, None),
    ("gpt-oss-120b", GPT_OSS | {"num_hidden_layers": 36, "num_local_experts": 128,
                                "layer_types": ["sliding_attention", "full_attention"] * 18}, 116_829_156_672, None),
    ("DeepSeek-V3", DEEPSEEK, 671_026_404_352, None),
]  # fmt: skip
"""Name, config.json, all parameters, and those of a token where a card says them exactly."""
ACTIVE = {
    "OLMoE-1B-7B": (1.3e9, 0.1e9),
    "granite-3.0-1b-a400m": (0.4e9, 0.1e9),
    "Qwen1.5-MoE-A2.7B": (2.7e9, 0.1e9),
    "gpt-oss-20b": (3.6e9, 0.1e9),
    "gpt-oss-120b": (5.1e9, 0.1e9),
    "DeepSeek-V3": (37e9, 1e9),
}
"""What the cards say, and to what they round; some leave out the embedding or the head."""


@pytest.mark.parametrize(("name", "raw", "total", "active"), PUBLISHED, ids=[each[0] for each in PUBLISHED])
def test_counts_of_published_models(name, raw, total, active):
    kind = get_family(raw["model_type"])
    config = kind.from_hf({key: value for key, value in raw.items() if key != "quantization_config"})
    assert counts.parameters(config) == total
    used = counts.active_parameters(config)
    if active is None:
        table = config.vocab_size * config.hidden_size
        said, unit = ACTIVE[name]
        assert any(abs(used - left - said) <= unit / 2 for left in (0, table, 2 * table))
    else:
        assert used == active
    again = kind.to_hf(config)
    assert kind.from_hf(again) == config and kind.to_hf(kind.from_hf(again)) == again


@pytest.mark.parametrize(
    "raw", [MIXTRAL, QWEN2, QWEN3, OLMOE, GRANITE, GPT_OSS, DEEPSEEK], ids=lambda raw: raw["model_type"]
)
def test_transformers_counts_the_same(raw):
    kind = get_family(raw["model_type"])
    plain = {key: value for key, value in raw.items() if key != "quantization_config"}
    few = plain | {"num_hidden_layers": 4} | ({"layer_types": raw["layer_types"][:4]} if "layer_types" in raw else {})
    config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(few)
    with torch.device("meta"):
        reference = getattr(transformers, raw["architectures"][0])(config)
    assert counts.parameters(kind.from_hf(few)) == sum(each.numel() for each in reference.parameters())


def test_the_cache_of_latent_attention_is_the_small_one():
    """DeepSeek-V3: 576 numbers for each token and layer, not 128 heads of 192 and 128."""
    config = get_family("deepseek_v3").from_hf(DEEPSEEK)
    assert counts.kv_cache_bytes(config, 1, dtype="bfloat16") == 61 * (512 + 64) * 2
    assert config.cache_shape(60) == (1, 512, 64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"n_group": 7}, "groups"),
        ({"num_experts_per_tok": 300}, "experts_per_token"),
        ({"qk_rope_head_dim": 63}, "rope_dim"),
    ],
)
def test_what_deepseek_cannot_have_is_told(changes, told):
    with pytest.raises(InputError) as caught:
        get_family("deepseek_v3").from_hf(DEEPSEEK | changes)
    assert any(told in problem for problem in caught.value.problems)
