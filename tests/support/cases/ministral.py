"""Ministral: windows in chosen layers; Ministral 3: YaRN, and queries that grow with the position."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40, "head_dim": 8}  # fmt: skip
ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6, "rope_theta": 100.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.3}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    window = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    return Case(f"ministral {name}", f"Ministral{head}", "MinistralConfig", SIZES | window | changes)


def _case3(name, head="ForCausalLM", **changes):
    sizes = SIZES | {"rope_parameters": ROPE} | changes
    return Case(f"ministral3 {name}", f"Ministral3{head}", "Ministral3Config", sizes)


CASES = [
    _case("plain"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
    _case3("plain"),
    _case3("tied, window", sliding_window=5, tie_word_embeddings=True),
    _case3("classifier", "ForSequenceClassification", num_labels=3),
    _case3("tagger", "ForTokenClassification", num_labels=2),
    _case3("spans", "ForQuestionAnswering"),
    _case3("body", "Model"),
]
