"""DeBERTa v2 and v3: disentangled attention with near and far buckets, token types."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
         "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
         "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 32}  # fmt: skip


def _case(name, head="ForMaskedLM", **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice")
    return Case(f"deberta-v2 {name}", f"DebertaV2{head}", "DebertaV2Config", SIZES | changes, left_padding=not pooled)


CASES = [
    _case("masked"),
    _case("many buckets, types, untied", position_buckets=32, type_vocab_size=2, max_relative_positions=30,
          hidden_act="relu", tie_word_embeddings=False),
    _case("neighbours", conv_kernel_size=3, conv_act="gelu"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("choices", "ForMultipleChoice"),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]  # fmt: skip
