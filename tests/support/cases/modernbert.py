"""ModernBERT with every head it has: windows shorter than the text, both poolings, biases, both layouts of its keys."""

from battery import Case

from cases.bert import NUMBERS, SEVERAL

SIZES = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
         "max_position_embeddings": 40, "local_attention": 8, "attention_dropout": 0.0, "embedding_dropout": 0.0,
         "mlp_dropout": 0.0, "classifier_dropout": 0.0, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
LAYERS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
BASES = {"full_attention": {"rope_type": "default", "rope_theta": 900.0},
         "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}  # fmt: skip
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}


def _case(name, head, **changes):
    # transformers pools a text's first slot even where it is padding, the mean excepted
    pooled = head == "ForSequenceClassification" and changes.get("classifier_pooling") != "mean"
    settings = SIZES | changes
    return Case(f"modernbert {name}", f"ModernBert{head}", "ModernBertConfig", settings, left_padding=not pooled)


CASES = [
    _case("masked", "ForMaskedLM"),
    _case("untied", "ForMaskedLM", tie_word_embeddings=False),
    _case("no vocabulary bias", "ForMaskedLM", decoder_bias=False),
    _case("biases", "ForMaskedLM", **BIASES),
    _case("odd sizes", "ForMaskedLM", hidden_size=42, num_attention_heads=3, intermediate_size=37, local_attention=7),
    _case("other activations", "ForMaskedLM", hidden_activation="relu", classifier_activation="silu"),
    _case("own layers and bases", "ForMaskedLM", layer_types=LAYERS, rope_parameters=BASES),
    _case("old keys", "ForMaskedLM", global_attn_every_n_layers=2, global_rope_theta=700.0, local_rope_theta=30.0),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("mean classifier", "ForSequenceClassification", num_labels=3, classifier_pooling="mean", **BIASES),
    _case("regression", "ForSequenceClassification", num_labels=1),
    _case("several labels", "ForSequenceClassification", **SEVERAL),
    _case("several numbers", "ForSequenceClassification", **NUMBERS),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("choices", "ForMultipleChoice"),
    _case("mean choices", "ForMultipleChoice", classifier_pooling="mean"),
]
