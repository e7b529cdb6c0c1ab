"""OLMo 2 and 3: norms on the outputs, queries and keys normalized whole, windows in three of four layers, YaRN."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip
YARN = {
    "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, "rope_theta": 90.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}


def _case(number, name, head="ForCausalLM", **changes):
    return Case(f"olmo{number} {name}", f"Olmo{number}{head}", f"Olmo{number}Config", SIZES | changes)


MIXED = ["sliding_attention", "full_attention"]
CASES = [
    _case(2, "plain"),
    _case(2, "tied, biases", tie_word_embeddings=True, attention_bias=True, num_key_value_heads=4),
    _case(2, "classifier", "ForSequenceClassification", num_labels=3),
    _case(2, "body", "Model"),
    _case(3, "plain", sliding_window=5, layer_types=MIXED),
    _case(3, "yarn in the full layers", sliding_window=5, layer_types=MIXED, rope_parameters=YARN),
    _case(3, "classifier", "ForSequenceClassification", num_labels=3, sliding_window=5),
    _case(3, "body", "Model"),
]
