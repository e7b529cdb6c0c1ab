"""BERT with every head it has."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
SEVERAL = {"num_labels": 3, "problem_type": "multi_label_classification"}
NUMBERS = {"num_labels": 3, "problem_type": "regression"}


def _case(name, head, ours=None, **changes):
    # transformers pools the first slot even where it is padding
    pooled = head not in ("ForMaskedLM", "Model", "ForTokenClassification", "ForQuestionAnswering")
    return Case(f"bert {name}", f"Bert{head}", "BertConfig", SIZES | changes, ours, left_padding=not pooled)


CASES = [
    _case("masked", "ForMaskedLM"),
    _case("odd sizes", "ForMaskedLM", hidden_size=42, num_attention_heads=3, intermediate_size=37, hidden_act="relu"),
    _case("one token type", "ForMaskedLM", type_vocab_size=1, layer_norm_eps=1e-3, hidden_act="gelu_new"),
    _case("untied", "ForMaskedLM", tie_word_embeddings=False),
    _case("decoder", "LMHeadModel", is_decoder=True),
    _case("pretraining", "ForPreTraining"),
    _case("next sentence", "ForNextSentencePrediction"),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("regression", "ForSequenceClassification", num_labels=1),
    _case("several labels", "ForSequenceClassification", **SEVERAL),
    _case("several numbers", "ForSequenceClassification", **NUMBERS),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("choices", "ForMultipleChoice"),
]
