"""GPT-2: fused projections, ties, odd sizes; every head of it."""

from battery import Case

SIZES = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
         "attn_pdrop": 0.0}  # fmt: skip


def _case(name, head="LMHeadModel", ours=None, **changes):
    return Case(f"gpt2 {name}", f"GPT2{head}", "GPT2Config", SIZES | changes, ours)


CASES = [
    _case("plain"),
    _case("untied", tie_word_embeddings=False),
    _case("odd sizes", n_embd=42, n_head=3, n_inner=37),
    _case("exact gelu", activation_function="gelu", layer_norm_epsilon=1e-3),
    _case("deeper layers look softer", n_layer=3, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    _case("unscaled", scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
]
