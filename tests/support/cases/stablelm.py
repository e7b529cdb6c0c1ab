"""StableLM: sequential and parallel, queries and keys normalized with weights of each head."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"stablelm {name}", f"StableLm{head}", "StableLmConfig", SIZES | changes)


CASES = [
    _case("plain"),
    _case("parallel, normed", use_parallel_residual=True, qk_layernorm=True),
    _case("biases, tied, half turns", use_qkv_bias=True, tie_word_embeddings=True, partial_rotary_factor=0.5),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("body", "Model"),
]
