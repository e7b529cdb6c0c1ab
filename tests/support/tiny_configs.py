"""The smallest valid config.json of each family."""

from __future__ import annotations

from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "bart": {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
             "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    "distilbert": {"dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "bloom": {"hidden_size": 8, "n_layer": 1, "n_head": 2},
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "mamba2": {"hidden_size": 8, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 4, "state_size": 6, "n_groups": 1},
    "qwen3_5_text": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "linear_num_key_heads": 1,
                     "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 6,
                     "layer_types": ["linear_attention", "full_attention"]},
    "xlstm": {"hidden_size": 8, "num_hidden_layers": 2, "num_heads": 2},
    "opt": {"hidden_size": 8, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}  # fmt: skip
TINY["vit"] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 8, "patch_size": 4}  # fmt: skip
TINY["clip_vision_model"] = TINY["vit"] | {"projection_dim": 4}
TINY["clip_text_model"] = USUAL_TEXT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
                                        "num_attention_heads": 2, "projection_dim": 4}  # fmt: skip
TINY["clip"] = {"text_config": USUAL_TEXT | {"vocab_size": 32}, "vision_config": TINY["clip_vision_model"],
                "projection_dim": 4}  # fmt: skip
TINY["encoder-decoder"] = {
    "encoder": {"model_type": "bert", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 2},
    "decoder": {"model_type": "gpt2", "vocab_size": 32, **TINY["gpt2"], "add_cross_attention": True},
    "decoder_start_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
TINY["llava"] = {
    "text_config": {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "max_position_embeddings": 64},
    "vision_config": TINY["clip_vision_model"], "image_token_index": 31,
}  # fmt: skip
TINY["deit"] = TINY["ijepa"] = TINY["vit"]
TINY["deberta-v2"] = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "relative_attention": True, "share_att_key": True, "position_biased_input": False, "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm", "position_buckets": 8,
}  # fmt: skip
TINY["gpt_neo"] = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 16}
TINY["openai-gpt"], TINY["gptj"] = TINY["gpt2"], TINY["gpt2"] | {"rotary_dim": 2}
TINY["falcon"] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY["marian"], TINY["mt5"] = TINY["bart"], TINY["t5"]
TINY["whisper"] = TINY["bart"] | {"max_source_positions": 10, "num_mel_bins": 4, "max_target_positions": 8}
USUAL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                  "shared_expert_intermediate_size": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 4, "sliding_window": 4},
    "deepseek_v3": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 2,
                    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 4, "q_lora_rank": 6,
                    "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 3},
}  # fmt: skip
TINY["gemma4_text"] = USUAL | {"global_head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 32}
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", *EXPERTS)
MORE_GROUPED = ("olmo2", "olmo3", "smollm3", "granite", "cohere2", "starcoder2", "stablelm", "glm4", "nanochat")
MORE_GROUPED += ("ministral", "ministral3", "gemma4_text")
"""Families with grouped heads that came later."""


def tiny(name: str) -> dict[str, Any]:
    config = {"model_type": name, "vocab_size": 32, **TINY.get(name, USUAL)}
    if name in ("vit", "deit", "ijepa", "clip_vision_model", "clip", "llava", "encoder-decoder"):
        del config["vocab_size"]
    config |= EXPERTS.get(name, {})
    if name in (*GROUPED, *MORE_GROUPED):
        config |= {"num_key_value_heads": 1, "max_position_embeddings": 64}
    if name in ("gemma2", "gemma3_text"):
        config |= {"head_dim": 4, "query_pre_attn_scalar": 4}
    if name in ("gpt_neox", "stablelm"):
        config["num_attention_heads"] = 1
    if name in ("qwen3", "glm4", "ministral3", "gemma4_text"):
        config["head_dim"] = 4
    return config
