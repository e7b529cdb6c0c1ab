"""Mistral: grouped heads, windows shorter than the text, ties, odd sizes; every head of it."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40, "sliding_window": 5}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"mistral {name}", f"Mistral{head}", "MistralConfig", SIZES | changes, ours)


CASES = [
    _case("window"),
    _case("window of one", sliding_window=1),
    _case("no window", sliding_window=None),
    _case("tied, as many keys", tie_word_embeddings=True, num_key_value_heads=4, sliding_window=8),
    _case("odd sizes, wide heads", hidden_size=39, num_attention_heads=3, num_key_value_heads=1, head_dim=14,
          intermediate_size=37, rms_norm_eps=1e-3),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
]  # fmt: skip
