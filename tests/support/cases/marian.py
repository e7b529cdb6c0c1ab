"""Marian: computed positions, a decoder that starts with the padding token, unequal sides."""

from battery import Case

SIZES = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 40,
         "dropout": 0.0, "decoder_start_token_id": 0, "forced_eos_token_id": 2}  # fmt: skip


def _case(name, head="MTModel", **changes):
    # transformers counts positions from the first slot, padding or not
    return Case(f"marian {name}", f"Marian{head}", "MarianConfig", SIZES | changes, left_padding=False)


CASES = [
    _case("plain", scale_embedding=True, activation_function="swish"),
    _case(
        "unequal sides, unscaled",
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=6,
        encoder_ffn_dim=37,
        decoder_ffn_dim=50,
        activation_function="relu",
    ),
    _case("two vocabularies", share_encoder_decoder_embeddings=False, vocab_size=103, decoder_vocab_size=97),
    _case("odd sizes", d_model=42, encoder_attention_heads=3, decoder_attention_heads=7, scale_embedding=True),
    _case("body", "Model"),
]
