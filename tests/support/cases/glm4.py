"""GLM-4: adjacent channels of a part of each head rotated, norms on both sides."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40, "head_dim": 8}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"glm4 {name}", f"Glm4{head}", "Glm4Config", SIZES | changes)


CASES = [
    _case("plain"),
    _case("no biases, tied, all turns", attention_bias=False, tie_word_embeddings=True, partial_rotary_factor=1.0),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("body", "Model"),
]
