"""Cohere 2: one norm for both branches, adjacent channels rotated in windows, full layers without positions."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40, "sliding_window": 5,
         "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"cohere2 {name}", f"Cohere2{head}", "Cohere2Config", SIZES | changes)


CASES = [
    _case("plain"),
    _case("untied, biases", tie_word_embeddings=False, attention_bias=True, logit_scale=0.4),
    _case("body", "Model"),
]
