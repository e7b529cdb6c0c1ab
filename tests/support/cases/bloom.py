"""BLOOM: ALiBi with a number of heads that is no power of two, ties, odd sizes; every head."""

from battery import Case

SIZES = {"hidden_size": 48, "n_layer": 2, "n_head": 4}


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"bloom {name}", f"Bloom{head}", "BloomConfig", SIZES | changes, ours)


CASES = [
    _case("plain"),
    _case("untied", tie_word_embeddings=False),
    _case("odd sizes", hidden_size=42, n_head=3),
    _case("six heads", n_head=6, layer_norm_epsilon=1e-3),
    _case("trained in slices", pretraining_tp=2),
    _case("exact", slow_but_exact=True),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
]
