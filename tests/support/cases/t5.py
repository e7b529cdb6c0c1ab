"""T5: the first version (tied, plain), version 1.1 (untied, gated) and mT5; unequal depths, few and near buckets."""

from battery import Case

SIZES = {"d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
         "dropout_rate": 0.0, "decoder_start_token_id": 0}  # fmt: skip


def _case(name, **changes):
    return Case(f"t5 {name}", "T5ForConditionalGeneration", "T5Config", SIZES | changes)


CASES = [
    _case("plain"),
    _case("wide heads, unequal depths", d_kv=10, num_decoder_layers=3, num_layers=1),
    _case("version 1.1", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    _case("near buckets", relative_attention_num_buckets=8, relative_attention_max_distance=10),
    Case("mt5", "MT5ForConditionalGeneration", "MT5Config", SIZES | {"feed_forward_proj": "gated-gelu"}),
]
