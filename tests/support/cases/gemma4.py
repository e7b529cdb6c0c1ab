"""Gemma 4: shared keys and values, two head widths, second embeddings, keys as values, experts beside a network."""

from battery import VOCABULARY, Case

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "max_position_embeddings": 40,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
}
MIXTURE = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True,
           "num_global_key_value_heads": 1, "enable_moe_block": True, "num_experts": 6, "top_k_experts": 2,
           "moe_intermediate_size": 16, "final_logit_softcapping": 3.0}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"gemma4 {name}", f"Gemma4{head}", "Gemma4TextConfig", SIZES | changes, ours, scale=0.1)


CASES = [
    _case("small", use_double_wide_mlp=True, final_logit_softcapping=3.0),
    _case("mixture", **MIXTURE),
    _case("untied, biases", tie_word_embeddings=False, attention_bias=True, vocab_size_per_layer_input=110),
    _case("body", "TextModel", num_hidden_layers=3, num_kv_shared_layers=0,
          layer_types=["sliding_attention", "sliding_attention", "full_attention"]),
]  # fmt: skip
