"""Gemma 2 and the text model of Gemma 3: soft caps, windows, scales, two rotary bases, both ways; all their heads."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 40, "sliding_window": 5,
         "query_pre_attn_scalar": 11}  # fmt: skip
ODD = {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 37}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
}
BOTH_SCALED = BY_LAYER | {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 90.0}}


def _case2(name, head="ForCausalLM", ours=None, **changes):
    sizes = SIZES | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0} | changes
    return Case(f"gemma2 {name}", f"Gemma2{head}", "Gemma2Config", sizes, ours)


def _case3(name, head="ForCausalLM", ours=None, **changes):
    sizes = SIZES | {"sliding_window_pattern": 3} | changes
    return Case(f"gemma3 {name}", f"Gemma3{head}", "Gemma3TextConfig", sizes, ours)


CASES = [
    _case2("plain"),
    _case2("no caps", attn_logit_softcapping=None, final_logit_softcapping=None),
    _case2("untied, biases", tie_word_embeddings=False, attention_bias=True),
    _case2("odd sizes", **ODD),
    _case2("chosen layers", layer_types=["full_attention", "full_attention", "sliding_attention"]),
    _case2("body", "Model"),
    _case2("classifier", "ForSequenceClassification", num_labels=3),
    _case2("tagger", "ForTokenClassification", num_labels=2),
    _case3("plain"),
    _case3("no full layer", sliding_window_pattern=6),
    _case3("untied, biases, cap", tie_word_embeddings=False, attention_bias=True, final_logit_softcapping=3.0),
    _case3("odd sizes", **ODD),
    _case3("rope by type of layer", rope_parameters=BY_LAYER),
    _case3("both scaled", rope_parameters=BOTH_SCALED),
    _case3("body", "TextModel"),
    _case3("both ways", "TextModel", use_bidirectional_attention=True),
    _case3("classifier", "TextForSequenceClassification", num_labels=3),
]
