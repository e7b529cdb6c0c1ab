"""Qwen2 and Qwen3: biases, norms of queries and keys, windows in the last or in chosen layers; every head of both."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ODD = {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 37}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, "rope_theta": 10000.0}


def _cases(number):
    def case(name, head="ForCausalLM", ours=None, **changes):
        sizes = SIZES | ({"head_dim": 16} if number == 3 else {}) | changes
        return Case(f"qwen{number} {name}", f"Qwen{number}{head}", f"Qwen{number}Config", sizes, ours)

    return [
        case("plain"),
        case("unused window", sliding_window=5, max_window_layers=1),
        case("window in the last layers", **WINDOW),
        case("window in chosen layers", **WINDOW | MIXED),
        case("tied, as many keys", tie_word_embeddings=True, num_key_value_heads=4),
        case("odd sizes", **ODD, **({"head_dim": 10} if number == 3 else {})),
        case("yarn", rope_parameters=YARN),
        case("body", "Model"),
        case("classifier", "ForSequenceClassification", num_labels=3),
        case("tagger", "ForTokenClassification", num_labels=2),
        case("spans", "ForQuestionAnswering"),
        *([case("biases", attention_bias=True)] if number == 3 else []),
    ]


CASES = _cases(2) + _cases(3)
