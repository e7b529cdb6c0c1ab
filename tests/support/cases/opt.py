"""OPT: norms before and after, a narrower embedding, norms and projections without parameters; every head."""

from battery import Case

SIZES = {"hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "word_embed_proj_dim": 48, "dropout": 0.0}  # fmt: skip
NARROW = {"do_layer_norm_before": False, "word_embed_proj_dim": 20}


def _case(name, head="ForCausalLM", ours=None, **changes):
    return Case(f"opt {name}", f"OPT{head}", "OPTConfig", SIZES | changes, ours)


CASES = [
    _case("plain"),
    _case("350m", **NARROW),
    _case("narrow, norms before", word_embed_proj_dim=20),
    _case("no final norm", _remove_final_layer_norm=True),
    _case("no biases", enable_bias=False),
    _case("norms without parameters", layer_norm_elementwise_affine=False),
    _case("untied", tie_word_embeddings=False),
    _case("odd sizes", hidden_size=42, num_attention_heads=3, ffn_dim=37, activation_function="gelu"),
    _case("body", "Model"),
    _case("body of 350m", "Model", **NARROW),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("classifier on 350m", "ForSequenceClassification", num_labels=3, **NARROW),
    _case("spans", "ForQuestionAnswering", **NARROW),
]
