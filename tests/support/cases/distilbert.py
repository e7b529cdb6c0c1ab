"""DistilBERT with every head it has, tied and untied, its positions learned or begun as sines."""

from battery import Case

from cases.bert import NUMBERS, SEVERAL

SIZES = {"dim": 48, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40, "dropout": 0.0,
         "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0}  # fmt: skip


def _case(name, head, **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice")
    settings = SIZES | changes
    return Case(f"distilbert {name}", f"DistilBert{head}", "DistilBertConfig", settings, left_padding=not pooled)


CASES = [
    _case("masked", "ForMaskedLM"),
    _case("untied", "ForMaskedLM", tie_word_embeddings=False),
    _case("odd sizes", "ForMaskedLM", dim=42, n_heads=3, hidden_dim=37, activation="relu"),
    _case("sines", "ForMaskedLM", sinusoidal_pos_embds=True),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("regression", "ForSequenceClassification", num_labels=1),
    _case("several labels", "ForSequenceClassification", **SEVERAL),
    _case("several numbers", "ForSequenceClassification", **NUMBERS),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("choices", "ForMultipleChoice"),
]
