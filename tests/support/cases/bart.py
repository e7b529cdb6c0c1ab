"""BART: unequal encoder and decoder, odd sizes, a scaled embedding; every head it has."""

from battery import Case

SIZES = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 40,
         "dropout": 0.0, "decoder_start_token_id": 2}  # fmt: skip


def _case(name, head="ForConditionalGeneration", **changes):
    # transformers counts positions from the first slot, padding or not
    return Case(f"bart {name}", f"Bart{head}", "BartConfig", SIZES | changes, left_padding=False)


CASES = [
    _case("plain"),
    _case(
        "unequal sides",
        encoder_layers=1,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=6,
        encoder_ffn_dim=37,
        decoder_ffn_dim=50,
    ),
    _case(
        "odd sizes, scaled",
        d_model=42,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        scale_embedding=True,
        activation_function="relu",
        encoder_ffn_dim=51,
    ),
    _case("starts with padding", decoder_start_token_id=0, activation_function="gelu_new"),
    _case("untied", tie_word_embeddings=False),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("regression", "ForSequenceClassification", num_labels=1),
    _case("several labels", "ForSequenceClassification", num_labels=3, problem_type="multi_label_classification"),
    _case("spans", "ForQuestionAnswering"),
]
