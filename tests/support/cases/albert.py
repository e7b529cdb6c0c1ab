"""ALBERT: layers in one group and in several, a narrow embedding, one as wide as the layers."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
         "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
         "embedding_size": 12, "classifier_dropout_prob": 0.0}  # fmt: skip


def _case(name, head="ForMaskedLM", **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice", "ForPreTraining")
    return Case(f"albert {name}", f"Albert{head}", "AlbertConfig", SIZES | changes, left_padding=not pooled)


CASES = [
    _case("masked"),
    _case(
        "two groups, wide, untied", tie_word_embeddings=False, num_hidden_groups=2, embedding_size=32, hidden_act="relu"
    ),
    _case("pretraining", "ForPreTraining"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("choices", "ForMultipleChoice"),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
