"""The config.json files of the dense decoders and encoders of 2018 to 2025 as on the hub: read, counted, written."""

import json

import pytest
import torch
import transformers

from quatrain.core.errors import InputError
from quatrain.models.families import family_of
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts

COMMON = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
OLMO2_7B = COMMON | {
    "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "eos_token_id": 100257, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False,
    "vocab_size": 100352,
}  # fmt: skip
OLMO3_7B = OLMO2_7B | {
    "architectures": ["Olmo3ForCausalLM"], "max_position_embeddings": 65536, "model_type": "olmo3",
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8, "sliding_window": 4096, "vocab_size": 100278,
    "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
                     "original_max_position_embeddings": 8192, "rope_type": "yarn"},
}  # fmt: skip
SMOLLM3 = COMMON | {
    "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "eos_token_id": 128012, "hidden_act": "silu",
    "bos_token_id": None, "hidden_size": 2048, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
    "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
    "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip
GRANITE_2B = COMMON | {
    "architectures": ["GraniteForCausalLM"], "attention_bias": False, "attention_multiplier": 0.015625,
    "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "granite", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
    "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 10000000.0, "tie_word_embeddings": True, "vocab_size": 49159,
}  # fmt: skip
COMMAND_R7B = COMMON | {
    "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "bos_token_id": 5, "eos_token_id": 255001,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "layer_norm_eps": 1e-05,
    "logit_scale": 0.25, "max_position_embeddings": 132096, "model_type": "cohere2", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pad_token_id": 0, "rope_theta": 50000, "sliding_window": 4096,
    "vocab_size": 256000,
}  # fmt: skip
STARCODER2_3B = COMMON | {
    "architectures": ["Starcoder2ForCausalLM"], "bos_token_id": 0, "embedding_dropout": 0.1, "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 12288, "mlp_type": "default",
    "max_position_embeddings": 16384, "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
    "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2, "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True, "vocab_size": 49152,
}  # fmt: skip
STABLELM_1_6B = COMMON | {
    "architectures": ["StableLmForCausalLM"], "bos_token_id": 100257, "eos_token_id": 100257, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 5632, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
    "model_type": "stablelm", "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32,
    "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False, "use_qkv_bias": True,
    "vocab_size": 100352,
}  # fmt: skip
FALCON_7B = {
    "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0, "bias": False, "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0,
    "hidden_size": 4544, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon",
    "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32,
    "parallel_attn": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 65024,
}  # fmt: skip
FALCON_40B = FALCON_7B | {
    "hidden_size": 8192, "multi_query": True, "new_decoder_architecture": True, "num_attention_heads": 128,
    "num_hidden_layers": 60, "num_kv_heads": 8,
}  # fmt: skip
FALCON_RW_1B = FALCON_7B | {
    "alibi": True, "bias": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "multi_query": False,
    "num_attention_heads": 32, "num_hidden_layers": 24, "parallel_attn": False, "vocab_size": 50304,
}  # fmt: skip
GLM4_9B = COMMON | {
    "architectures": ["Glm4ForCausalLM"], "attention_bias": True, "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 13696,
    "max_position_embeddings": 32768, "model_type": "glm4", "num_attention_heads": 32, "num_hidden_layers": 40,
    "num_key_value_heads": 2, "pad_token_id": 151329, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
}  # fmt: skip
SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
           "summary_type": "cls_index", "summary_use_proj": True}  # fmt: skip
GPTJ_6B = SUMMARY | {
    "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 50256,
    "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": False, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28,
    "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer", "use_cache": True, "vocab_size": 50400,
}  # fmt: skip
GPT_NEO_125M = SUMMARY | {
    "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0,
    "attention_layers": ["global", "local"] * 6, "attention_types": [[["global", "local"], 6]],
    "bos_token_id": 50256, "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": False,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neo", "num_heads": 12, "num_layers": 12, "resid_dropout": 0,
    "use_cache": True, "vocab_size": 50257, "window_size": 256,
}  # fmt: skip
GPT = SUMMARY | {
    "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "openai-gpt", "n_ctx": 512, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 512, "n_special": 0, "predict_special_tokens": True,
    "resid_pdrop": 0.1, "vocab_size": 40478,
}  # fmt: skip
NANOCHAT_D32 = {
    "architectures": ["NanoChatForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 65527,
    "dtype": "bfloat16", "eos_token_id": 65531, "final_logit_softcapping": 15.0, "hidden_act": "relu2",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 2048,
    "model_type": "nanochat", "num_attention_heads": 16, "num_hidden_layers": 32, "num_key_value_heads": 16,
    "pad_token_id": 65531, "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 65536,
}  # fmt: skip
MINISTRAL3_3B = {
    "architectures": ["Mistral3ForConditionalGeneration"], "dtype": "bfloat16", "image_token_index": 10,
    "model_type": "mistral3", "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
    "spatial_merge_size": 2, "text_config": COMMON | {
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 9216,
        "max_position_embeddings": 262144, "model_type": "ministral3", "num_attention_heads": 32,
        "num_hidden_layers": 26, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
            "rope_type": "yarn", "type": "yarn"}, "sliding_window": None, "tie_word_embeddings": True,
        "vocab_size": 131072},
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral"}, "vision_feature_layer": -1,
}  # fmt: skip
MISTRAL_SMALL_3 = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 10,
    "text_config": COMMON | {
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 32768,
        "max_position_embeddings": 131072, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0,
        "sliding_window": None, "vocab_size": 131072},
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral"},
}  # fmt: skip


def _gemma4(hidden, layers, width, heads, groups, period, **more):
    kinds = (["sliding_attention"] * (period - 1) + ["full_attention"]) * (layers // period + 1)
    text = COMMON | {
        "attention_bias": False, "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": hidden, "intermediate_size": width,
        "layer_types": kinds[:layers], "max_position_embeddings": 131072, "model_type": "gemma4_text",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": groups, "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
        "sliding_window": 512, "tie_word_embeddings": True, "use_bidirectional_attention": None, "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144} | more  # fmt: skip
    return {"architectures": ["Gemma4ForConditionalGeneration"], "image_token_id": 258880, "model_type": "gemma4",
            "text_config": text, "vision_config": {"model_type": "gemma4_vision"}}  # fmt: skip


GEMMA4_LARGE = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True,
                "sliding_window": 1024, "use_bidirectional_attention": "vision"}  # fmt: skip
GEMMA4_E2B = _gemma4(1536, 35, 6144, 8, 1, 5, hidden_size_per_layer_input=256, num_kv_shared_layers=20,
                     use_double_wide_mlp=True)  # fmt: skip
GEMMA4_26B = _gemma4(2816, 30, 2112, 16, 8, 6, num_global_key_value_heads=2, enable_moe_block=True, num_experts=128,
                     top_k_experts=8, moe_intermediate_size=704, **GEMMA4_LARGE)  # fmt: skip
GEMMA4_31B = _gemma4(5376, 60, 21504, 32, 16, 6, num_global_key_value_heads=4, **GEMMA4_LARGE)
PHI4 = COMMON | {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "bos_token_id": 100257, "embd_pdrop": 0.0,
    "eos_token_id": 100265, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 17920,
    "max_position_embeddings": 16384, "model_type": "phi3", "num_attention_heads": 40, "num_hidden_layers": 40,
    "num_key_value_heads": 10, "original_max_position_embeddings": 16384, "pad_token_id": 100349, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 250000, "sliding_window": None,
    "tie_word_embeddings": False, "vocab_size": 100352,
}  # fmt: skip
ALBERT_BASE = {
    "architectures": ["AlbertForMaskedLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 2,
    "classifier_dropout_prob": 0.1, "down_scale_factor": 1, "embedding_size": 128, "eos_token_id": 3, "gap_size": 0,
    "hidden_act": "gelu_new", "hidden_dropout_prob": 0, "hidden_size": 768, "initializer_range": 0.02,
    "inner_group_num": 1, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "albert", "net_structure_type": 0, "num_attention_heads": 12, "num_hidden_groups": 1,
    "num_hidden_layers": 12, "num_memory_blocks": 0, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30000,
}  # fmt: skip
ELECTRA_SMALL = {
    "architectures": ["ElectraForPreTraining"], "attention_probs_dropout_prob": 0.1, "embedding_size": 128,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 256, "initializer_range": 0.02,
    "intermediate_size": 1024, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "electra",
    "num_attention_heads": 4, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first", "summary_use_proj": True,
    "type_vocab_size": 2, "vocab_size": 30522,
}  # fmt: skip
MPNET = {
    "architectures": ["MPNetForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "mpnet",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "relative_attention_num_buckets": 32,
    "vocab_size": 30527,
}  # fmt: skip
DEBERTA_V3 = {
    "architectures": ["DebertaV2ForMaskedLM"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-07, "max_position_embeddings": 512, "max_relative_positions": -1, "model_type": "deberta-v2",
    "norm_rel_ebd": "layer_norm", "num_attention_heads": 12, "num_hidden_layers": 12, "pos_att_type": "p2c|c2p",
    "position_biased_input": False, "position_buckets": 256, "relative_attention": True, "share_att_key": True,
    "type_vocab_size": 0, "vocab_size": 128100,
}  # fmt: skip
NOMIC = {
    "architectures": ["NomicBertModel"], "hidden_act": "silu", "hidden_size": 768, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 2048, "model_type": "nomic_bert", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 0, "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    "type_vocab_size": 2, "vocab_size": 30528,
}  # fmt: skip
PUBLISHED = {
    "OLMo-2-1124-7B": (OLMO2_7B, 7_298_617_344),
    "Olmo-3-7B": (OLMO3_7B, 7_298_011_136),
    "SmolLM3-3B": (SMOLLM3, 3_075_098_624),
    "granite-3.3-2b": (GRANITE_2B, 2_533_539_840),
    "c4ai-command-r7b-12-2024": (COMMAND_R7B, 8_028_033_024),
    "starcoder2-3b": (STARCODER2_3B, 3_030_371_328),
    "stablelm-2-1_6b": (STABLELM_1_6B, 1_644_515_328),
    "falcon-7b": (FALCON_7B, 6_921_720_704),
    "falcon-40b": (FALCON_40B, 41_303_293_952),
    "falcon-rw-1b": (FALCON_RW_1B, 1_311_625_216),
    "GLM-4-9B-0414": (GLM4_9B, 9_400_279_040),
    "gpt-j-6b": (GPTJ_6B, 6_050_882_784),
    "gpt-neo-125m": (GPT_NEO_125M, 125_198_592),
    "openai-gpt": (GPT, 116_534_784),
    "nanochat-d32": (NANOCHAT_D32, 1_879_048_192),
    "Ministral-3-3B, text": (MINISTRAL3_3B, 3_429_006_336),
    "Mistral-Small-3.1-24B, text": (MISTRAL_SMALL_3, 23_572_403_200),
    "gemma-4-E2B, text": (GEMMA4_E2B, 4_628_569_344),
    "gemma-4-26B-A4B, text": (GEMMA4_26B, 25_233_141_760),
    "gemma-4-31B, text": (GEMMA4_31B, 30_697_345_280),
    "phi-4": (PHI4, 14_659_507_200),
    "albert-base-v2": (ALBERT_BASE, 11_221_680),
    "electra-small-discriminator": (ELECTRA_SMALL, 13_549_057),
    "mpnet-base": (MPNET, 109_518_527),
    "deberta-v3-base": (DEBERTA_V3, 184_551_780),
    "nomic-embed-text": (NOMIC, 136_731_648),
}


@pytest.mark.parametrize(("raw", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_configurations_count_and_are_written(raw, count):
    family = family_of(raw)
    config = family.from_hf(raw)
    written = json.loads(json.dumps(family.to_hf(config)))
    assert family.from_hf(written) == config
    theirs = transformers.AutoConfig.for_model(**written)
    with torch.device("meta"):
        ours, reference = Model(config), getattr(transformers, written["architectures"][0])(theirs)
    assert ours.num_parameters() == counts.parameters(config) == reference.num_parameters() == count


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        (FALCON_7B, {"num_ln_in_parallel_attn": 2}, "new_decoder_architecture"),
        (COMMAND_R7B, {"head_dim": 64}, "head_dim"),
        (COMMAND_R7B, {"use_qk_norm": True}, "use_qk_norm"),
        (GPT_NEO_125M, {"attention_types": [[["global", "banded"], 6]]}, "attention_types"),
        (GPT_NEO_125M, {"attention_layers": ["global"] * 12}, "attention_layers"),
        (GPT, {"n_ctx": 256}, "n_ctx"),
        (GEMMA4_E2B, {"text_config": GEMMA4_E2B["text_config"] | {"use_bidirectional_attention": "all"}}, "'all'"),
        (GEMMA4_E2B, {"text_config": GEMMA4_E2B["text_config"] | {"per_layer_config": {"1": {}}}}, "per_layer_config"),
        (ALBERT_BASE, {"inner_group_num": 2}, "inner_group_num"),
        (DEBERTA_V3, {"share_att_key": False}, "share_att_key"),
        (DEBERTA_V3, {"conv_kernel_size": 2}, "neighbour_tokens"),
        (DEBERTA_V3, {"conv_groups": 2}, "conv_groups"),
        (DEBERTA_V3, {"pos_att_type": "c2p"}, "pos_att_type"),
        (ELECTRA_SMALL, {"summary_type": "mean"}, "summary_type"),
        (SMOLLM3, {"no_rope_layers": [1] * 12}, "no_rope_layers: 12 entries"),
    ],
)
def test_options_that_are_not_known_are_refused_by_name(base, change, named):
    with pytest.raises(InputError) as caught:
        family_of(base).from_hf(base | change)
    assert named in str(caught.value)


def test_layers_that_share_keys_have_no_cache():
    """Gemma 4 E2B: 15 of 35 layers store keys and values; 3 of them have full attention, with heads twice as wide."""
    config = family_of(GEMMA4_E2B).from_hf(GEMMA4_E2B)
    assert len(config.caching_layers) == 15 and {config.kv_source(layer) for layer in range(15, 35)} == {13, 14}
    stored = 3 * 8192 * 2 * 512 + 12 * 1024 * 2 * 256  # a sliding layer stores two windows
    assert counts.kv_cache_bytes(config, 8192, dtype="bfloat16") == 2 * stored
    large = family_of(GEMMA4_26B).from_hf(GEMMA4_26B)
    assert counts.active_parameters(large) == 3_822_530_560
    assert config.with_layers([0, 4, 34]).shared_kv_layers == 1
    with pytest.raises(InputError, match="no earlier layer has the type 'full'"):
        config.with_layers([0, 34])


def test_layers_keep_their_choices_when_some_are_taken():
    config = family_of(SMOLLM3).from_hf(SMOLLM3)
    assert config.layers_without_positions == tuple(range(3, 36, 4))
    assert config.with_layers([3, 0, 7]).layers_without_positions == (0, 2)
    shared = family_of(ALBERT_BASE).from_hf(ALBERT_BASE | {"num_hidden_groups": 3})
    assert shared.blocks == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert shared.with_layers([11, 0, 5]).blocks == (0, 1, 2)
