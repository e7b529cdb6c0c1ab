"""Keys of `tokenizer_config.json`: which are honoured, and which change nothing here and why.

A test takes the keys that transformers knows from its classes, so that one of a new release shows up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from quatrain.core.reading import kind_of, shown

HONOURED = frozenset(
    {
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
        *("added_tokens_decoder", "chat_template", "tokenizer_class", "model_max_length", "max_len"),
        *("clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"),
        *("split_special_tokens", "add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
        *("add_bos_token", "add_eos_token", "extra_ids", "legacy", "source_lang", "target_lang"),
        *("prefix_token", "middle_token", "suffix_token", "eot_token", "fill_token"),
    }
)
"""Read and followed. `add_bos_token`, `add_eos_token`, `extra_ids` and `legacy` say how older files are read; beside a
tokenizer.json its own post-processor decides, as in transformers."""

_FILES = "names a file; the files of the folder itself are read"
_LOADING = "an argument of transformers' loading, not of the tokenizer"
_CUTTING = "texts are encoded whole; what cuts or pads them has its own settings and says so"
HARMLESS: dict[str, str] = {
    **dict.fromkeys(("vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file"), _FILES),
    **dict.fromkeys(
        ("normalizer_file", "vocab", "merges", "source_spm", "target_spm", "target_vocab_file", "gguf_file"), _FILES
    ),
    **dict.fromkeys(("max_length", "stride", "truncation", "truncation_side", "truncation_strategy"), _CUTTING),
    **dict.fromkeys(("padding", "padding_side", "pad_to_multiple_of", "pad_token_type_id"), _CUTTING),
    **dict.fromkeys(
        ("max_target_length", "tokenizer_padding", "tokenizer_truncation", "_json_padding", "_json_truncation"),
        _CUTTING,
    ),
    **dict.fromkeys(("name_or_path", "is_local", "local_files_only", "revision", "subfolder", "token"), _LOADING),
    **dict.fromkeys(("cache_dir", "force_download", "proxies", "repo_id", "commit_message"), _LOADING),
    **dict.fromkeys(("_commit_hash", "_from_auto", "_from_pipeline", "save_jinja_files", "verbose"), _LOADING),
    **dict.fromkeys(("backend", "files_loaded", "init_inputs", "tokenizer_object", "tokenizer"), _LOADING),
    **dict.fromkeys(("_spm_precompiled_charsmap", "post_processor", "unk_id"), "read from the tokenizer's file itself"),
    **dict.fromkeys(("sp_model_kwargs", "separate_vocabs"), "sampling of SentencePiece is off; its file says the rest"),
    "errors": "bytes that are no character come out as U+FFFD, as from transformers' backend, which does not ask it",
    "auto_map": "code of others is never run; the tokenizer's file says how text is cut",
    "model_input_names": "names of arguments of transformers' models",
    "processor_class": "of models that read pictures or sound",
    "return_token_type_ids": "whether transformers returns a second list; ids are the same",
    "use_source_tokenizer": "an argument of transformers' decode",
    "sanitize_control_tokens": "an argument of transformers' apply_chat_template",
    "chat_control_tokens": "used by transformers only where a caller asks to sanitize a chat",
    "response_template": "describes how an answer is parsed, not its ids",
    "response_schema": "describes how an answer is parsed, not its ids",
    "trim_offsets": "offsets are those of the tokenizer's own post-processor",
    "use_default_system_prompt": "transformers keeps it and does not use it; the chat template decides",
    "fix_mistral_regex": "how words are cut stands in tokenizer.json and is taken from there",
    "language": "Whisper's prompt, which its processor sets for speech",
    "task": "Whisper's prompt, which its processor sets for speech",
    "predict_timestamps": "Whisper's prompt, which its processor sets for speech",
    "transformers_version": "who wrote the file",
}
"""What changes neither ids nor texts here, and why."""

_SWITCHES = (
    *("clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"),
    *("split_special_tokens", "add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
    *("add_bos_token", "add_eos_token", "legacy", "separate_vocabs"),
)
_SIDES = ("padding_side", "truncation_side")
_END = "<|endoftext|>"
_FAIRSEQ = {
    **{"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
_GPT2 = {"unk_token": _END, "bos_token": _END, "eos_token": _END}
_BERT = {
    **{"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"},
    "mask_token": "[MASK]",
}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
DEFAULT_ROLES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer", "WhisperTokenizer"), _GPT2),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "XLMRobertaTokenizer"), _FAIRSEQ),
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _BERT),
    **dict.fromkeys(("LlamaTokenizer", "CodeLlamaTokenizer"), _LLAMA),
    "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    "GPTNeoXTokenizer": _GPT2 | {"pad_token": "<|padding|>"},
    "GemmaTokenizer": {
        **{"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        "mask_token": "<mask>",
    },
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "MarianTokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
"""The special tokens of transformers' classes where the files name none."""


def key_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values of a tokenizer_config.json, its tokens apart."""
    for name in _SWITCHES:
        if config.get(name) is not None and not isinstance(config[name], bool):
            yield f"{name}: {shown(config[name])}; must be true or false"
    for name in _SIDES:
        if config.get(name) not in (None, "left", "right"):
            yield f"{name}: {shown(config[name])}; must be left or right"
    for name in ("model_max_length", "max_len"):
        value = config.get(name)
        if value is not None and not _is_length(value):
            yield f"{name}: {shown(value)}; must be a number of at least 1"
    extra = config.get("extra_ids")
    if extra is not None and not (isinstance(extra, int) and not isinstance(extra, bool) and 0 <= extra <= 100_000):
        yield f"extra_ids: {shown(extra)}; must be a whole number from 0 to 100,000"
    if not isinstance(config.get("tokenizer_class"), str | None):
        yield f"tokenizer_class: {shown(config['tokenizer_class'])}; must be a name"
    if not isinstance(config.get("chat_template"), str | list | dict | None):
        kind = kind_of(config["chat_template"])
        yield f"chat_template: must be a text or a list of named ones, not {kind}"


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and value >= 1
