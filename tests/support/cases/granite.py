"""Granite: every factor, ties, biases."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40, "embedding_multiplier": 3.0,
         "attention_multiplier": 0.2, "residual_multiplier": 0.6, "logits_scaling": 1.7}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"granite {name}", f"Granite{head}", "GraniteConfig", SIZES | changes)


CASES = [
    _case("plain"),
    _case("tied, biases", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    _case("body", "Model"),
]
