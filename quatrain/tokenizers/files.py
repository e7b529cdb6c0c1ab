"""Reads a tokenizer from any published files, with the roles of its special tokens.

Files are tried in this order: `tokenizer.json`; Marian's `source.spm`, `target.spm` and `vocab.json`; a SentencePiece
model (`tokenizer.model`, `spiece.model`); `vocab.json` with `merges.txt`; `vocab.txt`; a `.tiktoken` file. Older files
do not describe how text is split into words, so the family is inferred from `tokenizer_config.json` or `config.json`,
or else from the vocabulary.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from quatrain.core import reading
from quatrain.core.errors import InputError
from quatrain.core.gguf_file import gguf_in
from quatrain.core.wording import format_value
from quatrain.tokenizers import tiktoken
from quatrain.tokenizers.gguf import read_gguf
from quatrain.tokenizers.legacy import LARGEST_ID, LegacyTokenizer, refusing
from quatrain.tokenizers.sentencepiece import read_marian, read_sentencepiece
from quatrain.tokenizers.token_config import (
    MAX_TOKENIZER_BYTES,
    ROLES,
    TokenFiles,
    content_of,
    exists,
    is_own_name,
    optional_json,
    read_token_files,
    settled_roles,
    tokens_to_add,
    without_defaults,
)
from quatrain.tokenizers.vocabularies import read_byte_level, read_wordpiece

TARGET_FOLDER = "target_tokenizer"
"""The folder, in a model folder, of the decoder's tokenizer if it differs from the encoder's."""

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model")
_LISTS = ("vocab.json", "merges.txt", "vocab.txt")
#: Role -> usual special tokens, for tokenizers without tokenizer_config.json.
_USUAL_NAMES = {
    "bos": ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>"),
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
    "unk": ("<unk>", "<|unk|>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}
#: `model_type` of config.json -> the family whose rules apply to its older files.
_FAMILY_OF_MODEL_TYPE = {
    **dict.fromkeys(("gpt2", "phi", "codegen", "gptj", "gpt_neo", "bloom", "whisper"), "gpt2"),
    **dict.fromkeys(("roberta", "bart", "longformer", "xlm-roberta"), "roberta"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "qwen2"),
    **dict.fromkeys(("bert", "distilbert", "modernbert", "mobilebert", "electra"), "bert"),
    **dict.fromkeys(("t5", "mt5", "umt5"), "t5"),
    **dict.fromkeys(("llama", "mistral", "mixtral", "phi3", "gemma", "gemma2", "gemma3", "gemma3_text"), "llama"),
    "gpt_neox": "gpt_neox",
    "opt": "opt",
    "marian": "marian",
}
#: `tokenizer_class` of tokenizer_config.json without "Tokenizer" and "Fast" -> the family.
_FAMILY_OF_CLASS = {
    **dict.fromkeys(("GPT2", "CodeGen", "Whisper"), "gpt2"),
    **dict.fromkeys(("Roberta", "Bart", "Longformer"), "roberta"),
    **dict.fromkeys(("Bert", "DistilBert", "Electra"), "bert"),
    **dict.fromkeys(("T5", "MT5"), "t5"),
    **dict.fromkeys(("Llama", "Gemma", "CodeLlama"), "llama"),
    "Qwen2": "qwen2",
    "GPTNeoX": "gpt_neox",
    "Marian": "marian",
}
#: Keys of tokenizer_config.json that only describe older files and would mislead readers of tokenizer.json.
_LEGACY_KEYS = (
    *("tokenizer_class", "legacy", "sp_model_kwargs", "extra_ids", "vocab_file", "merges_file", "tokenizer_file"),
    *("add_prefix_space", "source_lang", "target_lang", "separate_vocabs", "name_or_path", "special_tokens_map_file"),
    *("spaces_between_special_tokens", "extra_special_tokens"),
)


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder has any tokenizer file, complete or not."""
    names = ("tokenizer.json", *_SENTENCEPIECE, "source.spm", "target.spm", "vocab.json", "vocab.txt")
    return any(exists(Path(folder) / name) for name in names) or gguf_in(folder) is not None


def read(path: Path, *, target: bool = False) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer at `path`, a folder or one file, and its configuration with the roles of its special tokens.

    `target` selects the decoder's tokenizer of an encoder-decoder. Raises InputError that names what is missing or
    broken.
    """
    if (file := gguf_in(path)) is not None:
        return read_gguf(file)
    folder = path if path.is_dir() else path.parent
    if target and path.is_dir():
        if (folder / TARGET_FOLDER).is_dir() and not (folder / "target.spm").is_file():
            return read(folder / TARGET_FOLDER)
        if (folder / "target.spm").is_file():
            return _read_older(folder, target=True)
    file = folder / "tokenizer.json" if path.is_dir() else path
    if exists(file) and file.suffix == ".json" and file.name != "vocab.json":
        return _read_whole(file, folder)
    if path.is_dir():
        return _read_older(folder, target=False)
    if path.is_file():
        return _read_file(path)
    raise InputError(f"no tokenizer at {path}: expected a tokenizer.json or a folder that holds one")


def read_json_backend(file: Path) -> Backend:
    """The tokenizer of a tokenizer.json. Raises InputError if the file is incomplete or invalid."""
    text = reading.read_text(file, MAX_TOKENIZER_BYTES)
    with refusing(f"cannot read the tokenizer {file}", "It is not a valid tokenizer.json"):
        backend = Backend.from_str(text)
        backend.encode("a", "a")  # a post-processor whose tokens are missing fails only when it is used
    token, number = max(backend.get_vocab().items(), key=lambda each: each[1], default=("", 0))
    if number > LARGEST_ID:
        raise InputError(
            f"cannot read the tokenizer {file}: {format_value(token)} has id {number:,}, and ids go up to "
            f"{LARGEST_ID:,} at most. It is not a valid tokenizer.json"
        )
    return backend


def _read_whole(file: Path, folder: Path) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of a tokenizer.json and the configuration files next to it."""
    backend = read_json_backend(file)
    token_files = read_token_files(folder)
    with refusing(f"the tokens beside {file} cannot be added", "The files belong to different tokenizers"):
        backend.add_tokens(tokens_to_add(token_files, backend))
    _warn_of_moved(token_files, backend, folder)
    _apply_settings(backend, token_files.config)
    return backend, _with_roles(settled_roles(token_files.config, backend), backend)


def _warn_of_moved(token_files: TokenFiles, backend: Backend, folder: Path) -> None:
    """Warn of tokens whose id in the configuration files differs from the one in tokenizer.json, which is used."""
    expected = {token.content: number for number, token in (token_files.tokens or {}).items()} | token_files.added
    moved = [
        f"{content!r} should have id {number} and has id {actual}"
        for content, number in expected.items()
        if (actual := backend.token_to_id(content)) is not None and actual != number
    ]
    if moved:
        examples = "; ".join(moved[:3]) + (f"; and {len(moved) - 3} more" if len(moved) > 3 else "")
        warnings.warn(
            f"{folder}: the ids of added tokens differ from tokenizer.json, whose ids are used, as in transformers: "
            f"{examples}. Are the files from another vocabulary?",
            stacklevel=2,
        )


def _apply_settings(backend: Backend, config: dict[str, Any]) -> None:
    """Apply the settings with which transformers' classes override a tokenizer.json."""
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    rules = _FAMILY_OF_CLASS.get(kind)
    prefix = config.get("add_prefix_space")
    if rules in ("gpt2", "roberta", "gpt_neox") and isinstance(prefix, bool):
        step: Any = backend.pre_tokenizer
        if isinstance(step, pre_tokenizers.ByteLevel) and step.add_prefix_space != prefix:
            step.add_prefix_space = prefix
            backend.pre_tokenizer = step
    normalizer: Any = backend.normalizer
    if rules == "bert" and isinstance(normalizer, normalizers.BertNormalizer):
        for key, name in _BERT_SETTINGS.items():
            if key in config:
                setattr(normalizer, name, config[key])
        backend.normalizer = normalizer


_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Keys of tokenizer_config.json -> settings of BertNormalizer."""


def _read_older(folder: Path, *, target: bool) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of a folder without tokenizer.json."""
    config = without_defaults(read_token_files(folder).config)
    family = _family(folder, config)
    spm = [name for name in ("source.spm", "target.spm") if exists(folder / name)]
    models = [name for name in _SENTENCEPIECE if exists(folder / name)]
    lists = [name for name in _LISTS if exists(folder / name)]
    if spm:
        with refusing(f"cannot read the tokenizer at {folder}", "Download its files again"):
            return _finished(read_marian(folder, config, target=target), folder, config)
    if models:
        return _read_model(folder / models[0], family, config)
    if "vocab.json" in lists and "merges.txt" in lists:
        return _finished(read_byte_level(folder, family, config), folder, config)
    if "vocab.txt" in lists:
        return _finished(read_wordpiece(folder / "vocab.txt", config), folder, config)
    if lists:
        other = {"vocab.json": "merges.txt", "merges.txt": "vocab.json"}[lists[0]]
        raise InputError(
            f"the tokenizer at {folder} is incomplete: it has {lists[0]} but not {other}; byte-level BPE needs both. "
            f"Download {other} from the same place, or a tokenizer.json, which has both"
        )
    raise InputError(
        f"no tokenizer at {folder}: expected a tokenizer.json, or the older files of a family: vocab.json with "
        "merges.txt, vocab.txt, tokenizer.model, spiece.model, or source.spm and target.spm with vocab.json"
    )


def _read_model(file: Path, family: str | None, config: dict[str, Any]) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of a `tokenizer.model` or `spiece.model`: a SentencePiece model, or tiktoken ranks (Llama 3)."""
    if tiktoken.holds_ranks(file):
        return _finished(tiktoken.read_tiktoken(file), file.parent, config)
    if file.name == "sentencepiece.bpe.model":
        raise InputError(
            f"cannot read {file}: XLM-RoBERTa renumbers the pieces of its SentencePiece model; only its "
            "tokenizer.json has the new ids. Download the tokenizer.json published with it"
        )
    if family is None and file.name == "spiece.model":
        family = "t5"
    with refusing(f"cannot read {file}", "Download it again"):
        return _finished(read_sentencepiece(file, family, config), file.parent, config)


def _read_file(file: Path) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of which the user named one file."""
    if file.name in _LISTS or file.name in ("source.spm", "target.spm"):
        if file.name != "vocab.txt":
            return _read_older(file.parent, target=file.name == "target.spm")
        config = without_defaults(read_token_files(file.parent).config)
        return _finished(read_wordpiece(file, config), file.parent, config)
    if file.suffix in (".model", ".spm"):
        config = without_defaults(read_token_files(file.parent).config)
        return _read_model(file, _family(file.parent, config), config)
    if ".tiktoken" in file.suffixes:
        return _finished(tiktoken.read_tiktoken(file), file.parent, {})
    if file.suffix == ".txt":
        return _finished(read_wordpiece(file, {}), file.parent, {})
    raise InputError(
        f"{file} is not a tokenizer file: allowed are .json (tokenizer.json), .model and .spm (SentencePiece), "
        ".tiktoken, vocab.txt, vocab.json and merges.txt"
    )


def _finished(parts: LegacyTokenizer, folder: Path, config: dict[str, Any]) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of older files with its added tokens, and its configuration without the keys of those files.

    The family's roles apply where the configuration has none."""
    config = {**parts.roles, **config}
    backend = parts.backend
    _add_numbered(backend, folder, config)
    others = list(config.get("additional_special_tokens") or [])
    extra = config.get("extra_special_tokens") or []
    others += extra.values() if isinstance(extra, dict) else extra
    others += [value for key, value in config.items() if is_own_name(key, value)]
    for token in (*(config.get(f"{role}_token") for role in ROLES), *others):
        content = content_of(token)
        if content and content not in {added.content for added in parts.tokens}:
            description = dict(token) if isinstance(token, dict) else {"content": content}
            parts.tokens.append(_added_token(description | {"special": True}))
    for token in parts.tokens:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    around = parts.around(backend, config)
    if around is not None:
        backend.post_processor = around
    described = {key: value for key, value in settled_roles(config, backend).items() if key not in _LEGACY_KEYS}
    return backend, described


def _add_numbered(backend: Backend, folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens of added_tokens.json and `added_tokens_decoder` at the ids given there."""
    numbered = {int(number): token for number, token in (config.get("added_tokens_decoder") or {}).items()}
    for token, number in optional_json(folder / "added_tokens.json").items():
        numbered.setdefault(int(number), {"content": token, "special": False})
    # If the normalizer prepends a space, a normalized token would only match after one.
    prepends = backend.normalizer is not None and len(backend.normalizer.normalize_str("a")) > 1
    problems = []
    for number, token in sorted(numbered.items()):
        added = _added_token(token, normalized=not prepends)
        actual, end = backend.token_to_id(added.content), backend.get_vocab_size(with_added_tokens=True)
        if actual == number or (actual is None and number == end):
            (backend.add_special_tokens if added.special else backend.add_tokens)([added])
        elif actual is not None:
            problems.append(f"{added.content!r} should have id {number}, but has id {actual} in the vocabulary")
        else:
            problems.append(f"{added.content!r} should have id {number}, but the next free id is {end}")
    if problems:
        raise InputError(
            f"the added tokens of {folder} do not match its vocabulary; the files belong to different tokenizers",
            problems,
        )


def _added_token(description: Any, *, normalized: bool = True) -> AddedToken:
    if not isinstance(description, dict):
        description = {"content": str(description), "special": True}
    special = bool(description.get("special", True))
    flags = {name: bool(description.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = normalized and bool(description.get("normalized", not special))
    return AddedToken(str(description.get("content")), special=special, normalized=normalized, **flags)


def _family(folder: Path, config: dict[str, Any]) -> str | None:
    """The family whose rules apply to a folder's older files, from its configuration; None if unknown."""
    model_type = optional_json(folder / "config.json").get("model_type")
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    return _FAMILY_OF_MODEL_TYPE.get(str(model_type)) or _FAMILY_OF_CLASS.get(named)


def _with_roles(config: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """The configuration; if it has no roles at all, they are inferred from token names."""
    if any(f"{role}_token" in config for role in ROLES):
        return config
    return roles_by_name(backend) | config


def roles_by_name(backend: Backend) -> dict[str, Any]:
    """The roles of a tokenizer's special tokens, inferred from their names."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    roles = {role: next((name for name in names if name in special), None) for role, names in _USUAL_NAMES.items()}
    return {f"{role}_token": name for role, name in roles.items() if name is not None}
