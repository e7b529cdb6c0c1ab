"""GPT-NeoX: residuals side by side and one after the other, partial rotary positions, no biases, ties; every head."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "classifier_dropout": 0.0, "rotary_pct": 0.5}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"gpt_neox {name}", f"GPTNeoX{head}", "GPTNeoXConfig", SIZES | changes, ours)


CASES = [
    _case("plain"),
    _case("one after the other", use_parallel_residual=False),
    _case("no biases", attention_bias=False, layer_norm_eps=1e-3),
    _case("all turns", rotary_pct=1.0, rotary_emb_base=500),
    _case("tied", tie_word_embeddings=True),
    _case(
        "odd sizes", hidden_size=42, num_attention_heads=3, intermediate_size=37, hidden_act="gelu_new", rotary_pct=0.3
    ),
    _case("linear rope", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
]
