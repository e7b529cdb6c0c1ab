"""Llama: grouped heads, ties, biases, odd sizes, rope scaling; every head of a decoder."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "max_position_embeddings": 40}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 100.0}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"llama {name}", f"Llama{head}", "LlamaConfig", SIZES | changes, ours)


CASES = [
    _case("plain"),
    _case("grouped", num_key_value_heads=2),
    _case("one key", num_key_value_heads=1),
    _case("tied", tie_word_embeddings=True),
    _case("biases", attention_bias=True, mlp_bias=True),
    _case("wide heads", head_dim=22),
    _case("odd sizes", hidden_size=42, num_attention_heads=3, num_key_value_heads=3, intermediate_size=37),
    _case("llama3 rope", rope_parameters=LLAMA3),
    _case("linear rope", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("regression", "ForSequenceClassification", num_labels=1),
    _case("several labels", "ForSequenceClassification", num_labels=3, problem_type="multi_label_classification"),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
]
