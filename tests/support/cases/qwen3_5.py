"""Qwen 3.5: both types of layers in any order, shared and own keys, partial rotary positions, its heads."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 160, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
         "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, length=19, scale=0.15, **changes):
    return Case(f"qwen3_5 {name}", f"Qwen3_5{head}", "Qwen3_5TextConfig", SIZES | changes, ours, length=length,
                scale=scale, attentions=False)  # fmt: skip


CASES = [
    _case("plain"),
    _case("tied", tie_word_embeddings=True, linear_num_key_heads=4, linear_conv_kernel_dim=3, rms_norm_eps=1e-4,
          rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5,
                           "mrope_section": [2, 1, 1]}),
    _case("body", "TextModel", length=131, scale=0.06, num_hidden_layers=3,
          layer_types=["linear_attention", "full_attention", "linear_attention"]),
    _case("classifier", "TextForSequenceClassification", num_labels=3),
]  # fmt: skip
