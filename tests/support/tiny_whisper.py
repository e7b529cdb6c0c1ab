"""A tiny random Whisper of transformers with the special tokens of the multilingual models, and ours of its files."""

from functools import cache

import torch
import transformers

END, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMES = 60, 61, 62, 63, 64, 65, 67, 68, 69
FIRST = NO_TIMES + 1
"""The timestamp 0.00; there are 51 of them."""
SIZES = {
    "vocab_size": FIRST + 51, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 50,
    "max_target_positions": 40, "num_mel_bins": 16, "pad_token_id": END, "bos_token_id": END, "eos_token_id": END,
    "decoder_start_token_id": START, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
GENERATION = {
    "no_timestamps_token_id": NO_TIMES, "is_multilingual": True, "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN},
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE}, "max_initial_timestamp_index": 10,
    "prev_sot_token_id": PREVIOUS, "begin_suppress_tokens": [5, END], "return_timestamps": False,
    "suppress_tokens": [3, 4, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, 66, PREVIOUS, NO_SPEECH], "max_length": 30,
}  # fmt: skip
SOUNDS = torch.randn(3, 16, 100, generator=torch.Generator().manual_seed(1))


@cache
def theirs(model="WhisperForConditionalGeneration"):
    torch.manual_seed(0)
    made = getattr(transformers, model)(transformers.WhisperConfig(**SIZES, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    if hasattr(made, "generation_config"):
        for name, value in GENERATION.items():
            setattr(made.generation_config, name, value)
    return made
