"""MPNet: learned positions and a bias by distance."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
         "pad_token_id": 1, "bos_token_id": 0}  # fmt: skip


def _case(name, head="ForMaskedLM", **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice")
    return Case(
        f"mpnet {name}", f"MPNet{head}", "MPNetConfig", SIZES | changes, left_padding=not pooled, counts_tokens=True
    )


CASES = [
    _case("masked"),
    _case(
        "odd sizes, untied",
        tie_word_embeddings=False,
        hidden_size=30,
        num_attention_heads=3,
        intermediate_size=37,
        hidden_act="relu",
    ),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("choices", "ForMultipleChoice"),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
