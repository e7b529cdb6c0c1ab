"""StarCoder 2: with and without biases and windows, ties."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"starcoder2 {name}", f"Starcoder2{head}", "Starcoder2Config", SIZES | changes)


CASES = [
    _case("plain"),
    _case("window, no biases, untied", sliding_window=5, use_bias=False, tie_word_embeddings=False),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("body", "Model"),
]
