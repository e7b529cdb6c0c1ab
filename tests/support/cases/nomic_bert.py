"""NomicBERT: rotary positions, SwiGLU, norms after the residuals."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def _case(name, head="ForMaskedLM", **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification",)
    return Case(f"nomic_bert {name}", f"NomicBert{head}", "NomicBertConfig", SIZES | changes, left_padding=not pooled)


CASES = [
    _case("masked"),
    _case(
        "another base, untied",
        rope_parameters={"rope_type": "default", "rope_theta": 50.0},
        hidden_act="gelu",
        tie_word_embeddings=False,
    ),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("body", "Model"),
]
