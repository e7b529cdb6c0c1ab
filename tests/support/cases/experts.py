"""Mixtures of experts: Mixtral, Qwen2-MoE and Qwen3-MoE; routers, shared experts, dense layers between."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip
MIXTRAL = SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2}
QWEN = SIZES | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16}


def _mixtral(name, head="ForCausalLM", **changes):
    return Case(f"mixtral {name}", f"Mixtral{head}", "MixtralConfig", MIXTRAL | changes)


def _qwen2(name, head="ForCausalLM", **changes):
    sizes = QWEN | {"shared_expert_intermediate_size": 20} | changes
    return Case(f"qwen2_moe {name}", f"Qwen2Moe{head}", "Qwen2MoeConfig", sizes)


def _qwen3(name, head="ForCausalLM", **changes):
    return Case(f"qwen3_moe {name}", f"Qwen3Moe{head}", "Qwen3MoeConfig", QWEN | {"head_dim": 16} | changes)


def _olmoe(name, head="ForCausalLM", **changes):
    sizes = SIZES | {"num_experts": 6, "num_experts_per_tok": 3}
    return Case(f"olmoe {name}", f"Olmoe{head}", "OlmoeConfig", sizes | changes)


def _granite(name, head="ForCausalLM", **changes):
    scales = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    }
    return Case(f"granitemoe {name}", f"GraniteMoe{head}", "GraniteMoeConfig", MIXTRAL | scales | changes)


def _gpt_oss(name, head="ForCausalLM", **changes):
    sizes = MIXTRAL | {"head_dim": 16, "sliding_window": 5} | changes
    return Case(f"gpt_oss {name}", f"GptOss{head}", "GptOssConfig", sizes)


LATENT = {"kv_lora_rank": 12, "q_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, "rope_theta": 10000.0,
        "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1}  # fmt: skip


def _deepseek(name, head="ForCausalLM", **changes):
    sizes = SIZES | LATENT | {"num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
             "num_experts_per_tok": 3, "moe_intermediate_size": 16, "first_k_dense_replace": 1}  # fmt: skip
    return Case(f"deepseek_v3 {name}", f"DeepseekV3{head}", "DeepseekV3Config", sizes | changes)


CASES = [
    _mixtral("plain"),
    _mixtral("window", sliding_window=5),
    _mixtral("one expert for each token", num_experts_per_tok=1),
    _mixtral("classifier", "ForSequenceClassification", num_labels=3),
    _mixtral("spans", "ForQuestionAnswering"),
    _qwen2("plain"),
    _qwen2("dense layers", mlp_only_layers=[0], norm_topk_prob=True),
    _qwen2("window", use_sliding_window=True, sliding_window=5, max_window_layers=2),
    _qwen2("without biases", qkv_bias=False),
    _qwen2("tagger", "ForTokenClassification", num_labels=2),
    _qwen3("plain"),
    _qwen3("renormalized, sparse step", norm_topk_prob=True, decoder_sparse_step=2),
    _qwen3("window", use_sliding_window=True, sliding_window=5),
    _qwen3("biases, tied", attention_bias=True, tie_word_embeddings=True),
    _qwen3("body", "Model"),
    _olmoe("plain"),
    _olmoe("renormalized, biases", norm_topk_prob=True, attention_bias=True, num_key_value_heads=4),
    _olmoe("body", "Model"),
    _granite("plain"),
    _granite("biases, tied", attention_bias=True, tie_word_embeddings=True),
    _granite("body", "Model"),
    _gpt_oss("plain"),
    _gpt_oss("without scaling", rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, swiglu_limit=0.5),
    _gpt_oss("without biases", attention_bias=False, layer_types=["full_attention", "sliding_attention"]),
    _gpt_oss("tagger", "ForTokenClassification", num_labels=2),
    _deepseek("plain"),
    _deepseek("yarn, two shared experts", rope_parameters=YARN, n_shared_experts=2),
    _deepseek(
        "whole queries, halves", q_lora_rank=None, rope_interleave=False, norm_topk_prob=False, n_group=1, topk_group=1
    ),
    _deepseek("biases, tied", attention_bias=True, tie_word_embeddings=True, first_k_dense_replace=0),
    _deepseek("classifier", "ForSequenceClassification", num_labels=3),
]
