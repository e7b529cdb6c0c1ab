"""Phi: partial rotary positions, one norm for both branches, grouped heads, normed queries, ties; every head."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "resid_pdrop": 0.0}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"phi {name}", f"Phi{head}", "PhiConfig", SIZES | changes, ours)


CASES = [
    _case("plain"),
    _case("a third turns", partial_rotary_factor=0.34, rope_parameters=None),
    _case("all turns", partial_rotary_factor=1.0),
    _case("normed queries", qk_layernorm=True, layer_norm_eps=1e-3),
    _case("grouped", num_key_value_heads=2, qk_layernorm=True),
    _case("tied", tie_word_embeddings=True),
    _case("odd sizes", hidden_size=42, num_attention_heads=3, intermediate_size=37, partial_rotary_factor=0.6),
    _case("linear rope", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0,
                                          "partial_rotary_factor": 0.5}),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
]  # fmt: skip
