"""T5: the first version (tied, plain), 1.1 (gated, unscaled) and mT5; unequal depths, few and near buckets; heads.

An untied head is in tests/models/test_encoder_decoder.py: transformers ties every T5 that it makes.
"""

from battery import Case

SIZES = {"d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
         "dropout_rate": 0.0, "decoder_start_token_id": 0}  # fmt: skip


def _case(name, head="ForConditionalGeneration", ours=None, left_padding=True, **changes):
    return Case(f"t5 {name}", f"T5{head}", "T5Config", SIZES | changes, ours, left_padding=left_padding)


def _mt5(name, head, **changes):
    settings = SIZES | {"feed_forward_proj": "gated-gelu"} | changes
    # the decoder of transformers reads the padding before a text
    return Case(f"mt5 {name}", f"MT5{head}", "MT5Config", settings, left_padding="Sequence" not in head)


CASES = [
    _case("plain"),
    _case("wide heads, unequal depths", d_kv=10, num_decoder_layers=3, num_layers=1),
    _case("version 1.1", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    _case("gated silu", feed_forward_proj="gated-silu", layer_norm_epsilon=1e-4),
    _case("near buckets", relative_attention_num_buckets=8, relative_attention_max_distance=10),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", left_padding=False, num_labels=3),
    _case("regression", "ForSequenceClassification", left_padding=False, num_labels=1),
    _case("tagger", "ForTokenClassification", num_labels=2, num_layers=3),
    _case("spans", "ForQuestionAnswering", left_padding=False),
    _mt5("plain", "ForConditionalGeneration"),
    _mt5("classifier", "ForSequenceClassification", num_labels=2),
    _mt5("tagger", "ForTokenClassification", num_labels=2),
]
