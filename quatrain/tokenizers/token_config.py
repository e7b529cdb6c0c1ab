"""The configuration files of a tokenizer and the special and added tokens in them, read as transformers reads them.

`tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` name tokens that `tokenizer.json` may lack,
and may override their flags. `read_token_files` reads and checks the three files, `tokens_to_add` returns the tokens
to add to the backend, in order. Ids, flags and precedence follow transformers' `_from_pretrained` (5.x).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.core.wording import format_value, type_name
from quatrain.tokenizers.templates import template_files

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
"""The default special tokens of transformers' tokenizer classes."""


def key_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Problems with the other values of a tokenizer_config.json."""
    for name in _SWITCHES:
        if config.get(name) is not None and not isinstance(config[name], bool):
            yield f"{name}: {format_value(config[name])}; must be true or false"
    for name in _SIDES:
        if config.get(name) not in (None, "left", "right"):
            yield f"{name}: {format_value(config[name])}; must be left or right"
    for name in ("model_max_length", "max_len"):
        value = config.get(name)
        if value is not None and not _is_length(value):
            yield f"{name}: {format_value(value)}; must be a number of at least 1"
    extra = config.get("extra_ids")
    if extra is not None and not (isinstance(extra, int) and not isinstance(extra, bool) and 0 <= extra <= 100_000):
        yield f"extra_ids: {format_value(extra)}; must be a whole number from 0 to 100,000"
    if not isinstance(config.get("tokenizer_class"), str | None):
        yield f"tokenizer_class: {format_value(config['tokenizer_class'])}; must be a name"
    if not isinstance(config.get("chat_template"), str | list | dict | None):
        kind = type_name(config["chat_template"])
        yield f"chat_template: must be a text or a list of named ones, not {kind}"


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and value >= 1


ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
_IN_ORDER = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The order in which transformers adds role tokens."""
CONFIG = "tokenizer_config.json"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
MAX_TOKENIZER_BYTES = 512 * 1024 * 1024
"""Limit on a tokenizer file. A tokenizer.json with 262,144 tokens and its merges has 35 MB."""


@dataclass
class TokenFiles:
    """The configuration files of a tokenizer.

    `config` is tokenizer_config.json with the roles of special_tokens_map.json and the chat template files; `added` are
    the tokens and ids of added_tokens.json. `tokens` is `added_tokens_decoder` (id -> token), None if there is none.
    `named` are special tokens with model-specific names ("image_token"), `extra` those without a name.
    """

    config: dict[str, Any] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    tokens: dict[int, AddedToken] | None = None
    named: dict[str, str | AddedToken] = field(default_factory=dict)
    extra: list[str | AddedToken] = field(default_factory=list)
    late: bool = False
    """Whether `extra` has no influence on which of `added` are special, as in transformers' reading of the map."""


def exists(file: Path) -> bool:
    """Whether a path exists, even as a folder, a pipe or a broken link, which are then reported, not ignored."""
    return os.path.lexists(file)


def optional_json(file: Path) -> dict[str, Any]:
    """The object of a JSON file, {} if the file does not exist."""
    read: dict[str, Any] = read_json(file) if exists(file) else {}
    return read


def read_token_files(folder: Path) -> TokenFiles:
    """Read the configuration files of a tokenizer. Raises InputError with all problems of a file."""
    config = optional_json(folder / CONFIG)
    _check(chain(_plain_problems(config), key_problems(config), _token_problems(config)), folder / CONFIG)
    roles = optional_json(folder / "special_tokens_map.json")
    _check(
        chain(_plain_problems(roles), key_problems(roles), _token_problems(roles)), folder / "special_tokens_map.json"
    )
    added = optional_json(folder / "added_tokens.json")
    _check(_number_problems(added), folder / "added_tokens.json")
    templates = template_files(folder)
    config |= {"chat_template": templates} if templates else {}
    return _merged(config, roles, added)


def _merged(config: dict[str, Any], roles: dict[str, Any], added: dict[str, int]) -> TokenFiles:
    """Combine the three files: `added_tokens_decoder` alone if it exists, else the map's roles take precedence."""
    config = dict(config)
    if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    model_specific = {key: value for key, value in config.items() if is_own_name(key, value)}
    names: dict[str, Any] = {}
    tokens = None
    if config.get("added_tokens_decoder") is not None:
        decoder = config["added_tokens_decoder"]
        tokens, added = {int(number): added_token(token) for number, token in decoder.items()}, {}
        roles = {}
    _take_names(config, names)
    specific = config.pop("model_specific_special_tokens", None) or {}
    names |= {} if names or model_specific else specific
    for key, value in roles.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            there = list(config.get(key) or [])
            config[key] = [*there, *(token for token in value if token not in there)]
        else:
            config[key] = _token(value) if isinstance(value, Mapping) and key.endswith("_token") else value
    _take_names(config, names)
    model_specific |= {key: value for key, value in roles.items() if is_own_name(key, value)}
    late = "extra_special_tokens" not in config
    additional, unnamed = (config.pop(key, None) for key in ("additional_special_tokens", "extra_special_tokens"))
    unnamed = (additional if late else unnamed) or []
    named = {key: _token(value, special=False) for key, value in (model_specific | names).items() if content_of(value)}
    extra = [_token(each, special=False) for each in unnamed if content_of(each)]
    config |= {"extra_special_tokens": names} if names else {}
    config |= {"additional_special_tokens": unnamed} if unnamed else {}
    token_files = TokenFiles(config, added, tokens, named, extra, late)
    for role, token in DEFAULT_ROLES.get(_bare_class(config), {}).items():
        config.setdefault(role, Default(token))
    return token_files


def _take_names(config: dict[str, Any], names: dict[str, Any]) -> None:
    """Move named special tokens from the configuration to `names`."""
    if isinstance(config.get("extra_special_tokens"), Mapping):
        names |= config.pop("extra_special_tokens")


class Default(str):
    """A role token from the tokenizer's class, not from its files; it applies if the vocabulary has the token."""


def tokens_to_add(token_files: TokenFiles, backend: Backend) -> list[AddedToken]:
    """The tokens that transformers adds to a tokenizer.json with these configuration files, in its order.

    They include tokens that the backend already has, whose flags may change.
    """
    mine = backend.get_added_tokens_decoder()
    decoder = dict(token_files.tokens or {})
    config = token_files.config
    if token_files.tokens is None:
        special = {content_of(config.get(role)) for role in _IN_ORDER if not isinstance(config.get(role), dict)}
        special |= set() if token_files.late else {_content(token) for token in token_files.extra}
        for content, number in token_files.added.items():
            is_special = content in special
            decoder[number] = AddedToken(content, special=is_special, normalized=not is_special)
        decoder |= mine
    by_name = {token.content: token for token in decoder.values()}
    roles: list[str | AddedToken] = []
    for role in _IN_ORDER:
        named = content_of(config.get(role))
        if named and (not isinstance(config.get(role), Default) or backend.token_to_id(named) is not None):
            roles.append(by_name.get(named) or _token(config[role], special=False))
    roles += token_files.named.values()
    tokens: list[AddedToken] = [decoder[number] for number in sorted(decoder)]
    names = {token.content for token in mine.values()} | {token.content for token in tokens}
    contents = {_content(token) for token in roles}
    waiting: list[str | AddedToken] = []
    for token in (*roles, *token_files.extra):
        if _content(token) not in names and token not in waiting:
            waiting.append(token)
    tokens += [AddedToken(token, special=True) if isinstance(token, str) else token for token in waiting]
    for token in tokens:
        # set the attribute, do not construct anew: the default of `normalized` depends on it
        token.special = token.special or token.content in contents
    return [token for token in tokens if token.content]


def without_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the defaults of the tokenizer's class."""
    return {key: value for key, value in config.items() if not isinstance(value, Default)}


def settled_roles(config: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """The configuration with tokens as plain strings; their ids and flags are stored in the backend.

    A list of special tokens is called `additional_special_tokens`, which every version of transformers reads.
    """
    settled: dict[str, Any] = {}
    for key, value in config.items():
        if key == "added_tokens_decoder" or (isinstance(value, Default) and backend.token_to_id(value) is None):
            continue
        if key in _IN_ORDER or is_own_name(key, value):
            value = content_of(value)
        elif key == "additional_special_tokens":
            value = [content_of(each) for each in value]
        elif key == "extra_special_tokens":
            value = {name: content_of(each) for name, each in value.items()}
        settled[key] = value
    return settled


def content_of(token: object) -> str | None:
    """The content of a special token given as a string or as an object with `content`; None if empty."""
    if isinstance(token, AddedToken):
        token = token.content
    if isinstance(token, Mapping):
        token = token.get("content")
    return str(token) if isinstance(token, str) and token else None


def added_token(description: Any) -> AddedToken:
    """A token of `added_tokens_decoder`, with the defaults of `tokenizers`."""
    if isinstance(description, str):
        return AddedToken(description, special=True, normalized=False)
    flags = {name: bool(description[name]) for name in _FLAGS if description.get(name) is not None}
    return AddedToken(str(description["content"]), **flags)


def _token(description: Any, *, special: bool = True) -> str | AddedToken:
    """A role or extra token; `special` forces the flag."""
    if isinstance(description, str):
        return str(description)
    if isinstance(description, AddedToken):
        return description
    token = added_token(description)
    if special or ("__type" not in description and "special" not in description):
        token.special = True
    return token


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _bare_class(config: dict[str, Any]) -> str:
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def is_own_name(key: str, value: Any) -> bool:
    """Whether a key is a model-specific special token, such as "image_token"."""
    return key.endswith("_token") and key not in _IN_ORDER and content_of(value) is not None


def own_names(config: dict[str, Any]) -> dict[str, Any]:
    """The model-specific special tokens, such as {"image_token": …}, which chat templates may read."""
    named = {key: value for key, value in config.items() if is_own_name(key, value)}
    extra = config.get("extra_special_tokens")
    return named | (extra if isinstance(extra, dict) else {})


def _check(problems: Iterator[str], file: Path) -> None:
    if lines := list(problems):
        raise InputError(f"{file} cannot be used:", lines)


def _plain_problems(value: Any, where: str = "") -> Iterator[str]:
    """Problems with values that JSON cannot store: NaN, infinity, and lone surrogates."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _plain_problems(key, "a key")
            yield from _plain_problems(each, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _plain_problems(each, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{format_value(where)}: {value}; must be a finite number"
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{format_value(where)}: {format_value(value)}; holds half of a character (a lone surrogate)"


def _token_problems(config: dict[str, Any]) -> Iterator[str]:
    """Problems with the tokens of a tokenizer_config.json or special_tokens_map.json."""
    for role in _IN_ORDER:
        if config.get(role) is not None:
            yield from _one_problem(role, config[role])
    for key, value in config.items():
        if key.endswith("_token") and key not in _IN_ORDER and isinstance(value, Mapping):
            yield from _one_problem(key, value)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key)
        if isinstance(value, list):
            for number, token in enumerate(value):
                yield from _one_problem(f"{key}[{number}]", token)
        elif isinstance(value, Mapping) and key == "extra_special_tokens":
            yield from _table_problems(key, value)
        elif value is not None:
            yield f"{key}: {format_value(value)}; must be a list of tokens, not {type_name(value)}"
    yield from _table_problems("model_specific_special_tokens", config.get("model_specific_special_tokens"))
    decoder = config.get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, Mapping):
        fault = f"must be an object of ids and tokens, not {type_name(decoder)}"
        yield f"added_tokens_decoder: {format_value(decoder)}; {fault}"
    elif decoder is not None:
        for number, token in decoder.items():
            if not _is_id(number):
                yield f"added_tokens_decoder: {format_value(number)}; must be a token id from 0 to 2³¹ - 1"
            yield from _one_problem(f"added_tokens_decoder.{number}", token)


def _table_problems(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, token in value.items():
            yield from _one_problem(f"{key}.{name}", token)
    elif value is not None:
        yield f"{key}: {format_value(value)}; must be a table of names and tokens, not {type_name(value)}"


def _one_problem(where: str, token: Any) -> Iterator[str]:
    if isinstance(token, Mapping):
        if not isinstance(token.get("content"), str):
            yield f"{where}.content: {format_value(token.get('content'))}; must be the token's text"
        for name in _FLAGS:
            if token.get(name) is not None and not isinstance(token[name], bool):
                yield f"{where}.{name}: {format_value(token[name])}; must be true or false"
        token = token.get("content") if isinstance(token.get("content"), str) else ""
    if not isinstance(token, str):
        yield f"{where}: {format_value(token)}; must be a text or a table with its content, not {type_name(token)}"


def _number_problems(added: dict[str, Any]) -> Iterator[str]:
    owner: dict[int, str] = {}
    yield from _plain_problems(added)
    for token, number in added.items():
        if not isinstance(number, int) or isinstance(number, bool) or not _is_id(str(number)):
            yield f"{format_value(token)}: {format_value(number)}; must be a token id from 0 to 2³¹ - 1"
        else:
            first = owner.setdefault(number, token)
            if first != token:
                yield f"{format_value(token)}: id {number} is also that of {format_value(first)}"


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31
