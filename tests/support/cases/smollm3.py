"""SmolLM 3: layers without positions, chosen or every n-th, with and without windows."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40, "no_rope_layer_interval": 2}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"smollm3 {name}", f"SmolLM3{head}", "SmolLM3Config", SIZES | changes)


CASES = [
    _case("plain"),
    _case("no positions at all, untied", no_rope_layers=[0, 0], tie_word_embeddings=False, attention_bias=True),
    _case("windows", use_sliding_window=True, sliding_window=5, mlp_bias=True),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
