"""ELECTRA: generator and discriminator, a narrow embedding and one as wide as the layers."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
         "embedding_size": 12}  # fmt: skip


def _case(name, head="ForMaskedLM", **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice")
    return Case(f"electra {name}", f"Electra{head}", "ElectraConfig", SIZES | changes, left_padding=not pooled)


CASES = [
    _case("masked"),
    _case("masked, wide", embedding_size=32),
    _case("untied", tie_word_embeddings=False),
    _case("decoder", "ForCausalLM", is_decoder=True),
    _case("detector", "ForPreTraining", hidden_act="relu"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("choices", "ForMultipleChoice"),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
