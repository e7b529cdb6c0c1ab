"""Phi-3: fused projections of grouped heads, windows, LongRoPE below and past the original length; every head of it."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.2],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 9.0, 12.0],
    "rope_theta": 100.0,
}


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"phi3 {name}", f"Phi3{head}", "Phi3Config", SIZES | changes, ours)


def _long(original, **changes):
    rope = LONG | {"original_max_position_embeddings": original} | changes
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


CASES = [
    _case("plain"),
    _case("as many keys, window", num_key_value_heads=4, sliding_window=5),
    _case("tied, one key", tie_word_embeddings=True, num_key_value_heads=1),
    _case("odd sizes", hidden_size=42, num_attention_heads=3, num_key_value_heads=3, intermediate_size=37),
    _case("short rope", **_long(24)),
    _case("long rope", **_long(10)),
    _case("rope growing long", **_long(13)),
    _case("long rope, window", sliding_window=5, **_long(10)),
    _case("part of a head", **_long(10, partial_rotary_factor=0.5, short_factor=[1.0, 1.1, 1.3],
                                    long_factor=[1.0, 3.0, 9.0])),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
]  # fmt: skip
