r"""Tokenizers in the metadata of GGUF files, in both directions.

llama.cpp has four kinds: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `t5` (unigram) and `bert` (WordPiece). A
byte-level BPE names the rule that splits a text into words, by the model that it was made for: llama.cpp has these
rules in its code. A tokenizer with a rule of its own is written with the rule whose ids differ least on sample texts,
and the difference is reported. `SPLITS` holds the rules that are known here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.gguf_file import GgufFile, gguf_in
from quatrain.core.wording import format_value
from quatrain.tokenizers.samples import WORD_SAMPLES
from quatrain.tokenizers.sentencepiece import around_texts, tokenizer_of_model
from quatrain.tokenizers.templates import DEFAULT, END_OF_TURN_TOKENS
from quatrain.tokenizers.training import FREE_SPACES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens, which are SentencePiece's."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _END
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _END
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "gpt-4o": (_GPT4O,),
    "tekken": (_TEKKEN,),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
}
"""llama.cpp's rules by name: the patterns whose matches are words, one applied after the other."""

_SAME = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "roberta-bpe", "jina-es", "jina-de", "trillion", "granite-docling"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "pixtral", "falcon3", "default"),
    "smaug-bpe": ("dbrx",),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez", "kormo"),
    "bloom": ("gpt3-finnish", "poro-chat"),
    "gpt-4o": ("llama4",),
}
"""Other names of the same rules."""
_NAMED = {name: SPLITS[rule] for rule, names in _SAME.items() for name in (rule, *names)} | SPLITS
_KEEPS_WORDS = ("llama-bpe", "llama3", "llama-v3", "pixtral", "falcon3", "tekken")
"""The rules with which llama.cpp takes a word that is a token as it is, without merges."""

_ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id",
    "sep": "seperator_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip
"""Our roles of special tokens, and llama.cpp's keys (with its spelling)."""
_PREFIX = "tokenizer.ggml."
_SPACE = "▁"


@dataclass
class GgufTokenizer:
    """The metadata of a tokenizer, and what llama.cpp does differently."""

    metadata: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def to_metadata(tokenizer: Any, vocab_size: int) -> GgufTokenizer:
    """The metadata of a `Tokenizer` for a model whose embedding has `vocab_size` rows.

    Rows without a token get the unused tokens `[PAD0]`, …, as in llama.cpp's own converter. Raises InputError for a
    tokenizer that llama.cpp does not have (words, single characters), or with more tokens than the model has rows.
    """
    description = json.loads(tokenizer.backend.to_str())
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model {vocab_size:,} rows; the files belong to "
            "different models"
        )
    kind = _kind(description)
    written = GgufTokenizer({f"{_PREFIX}model": kind})
    tokens, types = _tokens(tokenizer, vocab_size)
    _WRITERS[kind](description, tokens, types, written)
    written.metadata |= {f"{_PREFIX}tokens": tokens, f"{_PREFIX}token_type": types}
    written.metadata |= _roles(tokenizer)
    written.metadata |= _templates(tokenizer)
    return written


def _kind(description: Mapping[str, Any]) -> str:
    model = description["model"]
    text = json.dumps([description["pre_tokenizer"], description["decoder"]])
    if model["type"] == "BPE" and model["merges"]:
        return "gpt2" if "ByteLevel" in text else "llama"
    kinds = {"Unigram": "t5", "WordPiece": "bert"}
    if model["type"] not in kinds:
        name = "single characters" if model["type"] == "BPE" else "whole words"
        raise InputError(
            f"a tokenizer of {name}: llama.cpp has byte-level BPE, SentencePiece BPE, unigram and WordPiece. Train the "
            "model with a tokenizer of kind bpe to export it"
        )
    return kinds[model["type"]]


def _tokens(tokenizer: Any, vocab_size: int) -> tuple[list[str], list[int]]:
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [UNUSED] * vocab_size
    added = tokenizer.backend.get_added_tokens_decoder()
    for token, number in vocabulary.items():
        tokens[number] = token
        types[number] = BYTE if number in tokenizer.byte_ids else NORMAL
    for number, token in added.items():
        tokens[number] = token.content
        types[number] = CONTROL if token.special else USER_DEFINED
    if (unknown := tokenizer.unk_id) is not None:
        types[unknown] = UNKNOWN
    return tokens, types


def _roles(tokenizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for role, key in _ROLES.items():
        token = tokenizer.special_token(role)
        if token is not None and (number := tokenizer.token_to_id(token)) is not None:
            found[_PREFIX + key] = number
    plain, whole = tokenizer.encode("a"), tokenizer.encode("a", special_tokens=True)
    before = whole[: whole.index(plain[0])] if plain and plain[0] in whole else []
    after = whole[len(before) + len(plain) :]
    found[f"{_PREFIX}add_bos_token"], found[f"{_PREFIX}add_eos_token"] = bool(before), bool(after)
    for ids, key in ((before, "bos_token_id"), (after, "eos_token_id")):
        if ids:
            found[_PREFIX + key] = ids[0]
    turns = [number for token in END_OF_TURN_TOKENS if (number := tokenizer.token_to_id(token)) is not None]
    for number in turns:
        name = "eom" if tokenizer.id_to_token(number) == "<|eom_id|>" else "eot"
        found.setdefault(f"{_PREFIX}{name}_token_id", number)
    return found


def _templates(tokenizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, source in tokenizer.chat_templates.items():
        key = "tokenizer.chat_template" if name == DEFAULT else f"tokenizer.chat_template.{name}"
        found[key] = plain_template(source)
    if others := [name for name in tokenizer.chat_templates if name != DEFAULT]:
        found["tokenizer.chat_templates"] = others
    return found


def plain_template(source: str) -> str:
    """A chat template without Hugging Face's `generation` blocks, which only mark tokens for training.

    llama.cpp's Jinja does not know them. A condition that always holds keeps the white space around them.
    """
    import re

    source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)


def _write_byte_level(
    description: Mapping[str, Any], tokens: list[str], types: list[int], written: GgufTokenizer
) -> None:
    model = description["model"]
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    written.metadata[f"{_PREFIX}merges"] = merges
    split = _split_of(description)
    if (
        split == (FREE_SPACES,)
        and description["normalizer"] is None
        and _write_free(description, tokens, types, written)
    ):
        return
    exact = [name for name, patterns in SPLITS.items() if patterns == split]
    keeps = bool(model.get("ignore_merges"))
    exact.sort(key=lambda name: (name in _KEEPS_WORDS) != keeps)
    if exact:
        written.metadata[f"{_PREFIX}pre"] = exact[0]
    else:
        name, wrong = closest_split(description)
        written.metadata[f"{_PREFIX}pre"] = name
        written.notes.append(
            f"llama.cpp has no rule that splits words as this tokenizer does; written with {name}: {_counted(wrong)}"
        )
    if description["normalizer"] is not None:
        written.notes.append(
            f"llama.cpp does not normalize ({_names(description['normalizer'])}): texts in another normal form than "
            "that of training have other ids there"
        )


_WHOLE = "superbpe"
"""The rule that splits digits alone, so that merges go over the spaces of a text."""


def _write_free(description: Mapping[str, Any], tokens: list[str], types: list[int], written: GgufTokenizer) -> bool:
    """Writes a tokenizer of `spaces = "free"`, whose rule llama.cpp does not have; False if another rule is closer.

    Whether the space before a capital belongs to the word depends on the letters after it: " SELECT", but " " and
    "Sam". Without words, merges give the same tokens but for this space. So no merge joins a space with a capital, and
    the words in capitals with their space become tokens that llama.cpp finds in the text before it merges. A word in
    capitals that is no token loses its space.
    """
    capitals = {
        number: " " + token[1:]
        for number, token in enumerate(tokens)
        if types[number] == NORMAL and len(token) > 2 and token[0] == _BYTE_SPACE and _is_capitals(token[1:])
    }
    merges = [
        merge
        for merge in written.metadata[f"{_PREFIX}merges"]
        if not (merge[0] == _BYTE_SPACE and merge.replace(" ", "", 1)[1].isupper())
    ]
    changed = json.loads(json.dumps(description))
    changed["model"]["merges"] = [merge.split(" ", 1) for merge in merges]
    changed["model"]["vocab"] = {
        capitals.get(number, token): number for token, number in description["model"]["vocab"].items()
    }
    candidate = Backend.from_str(json.dumps(changed))
    candidate.pre_tokenizer = _words(SPLITS[_WHOLE])
    candidate.add_tokens([AddedToken(text, normalized=False) for text in capitals.values()])
    wrong = _differing(Backend.from_str(json.dumps(description)), candidate)
    if len(wrong) > len(closest_split(description)[1]):
        return False
    for number, text in capitals.items():
        tokens[number], types[number] = text, USER_DEFINED
    written.metadata |= {f"{_PREFIX}merges": merges, f"{_PREFIX}pre": _WHOLE}
    written.notes.append(
        'llama.cpp has no rule for spaces = "free"; written without words, and with '
        f"{len(capitals)} words in capitals as tokens of their own: {_counted(wrong)}"
    )
    return True


_BYTE_SPACE = "Ġ"


def _is_capitals(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.isupper()


def _differing(original: Backend, candidate: Backend) -> list[str]:
    """The sample texts whose ids differ."""
    both = [each.encode_batch(WORD_SAMPLES, add_special_tokens=False) for each in (original, candidate)]
    return [text for text, one, other in zip(WORD_SAMPLES, *both, strict=True) if one.ids != other.ids]


def _counted(wrong: Sequence[str]) -> str:
    if not wrong:
        return f"all {len(WORD_SAMPLES)} sample texts have the same ids"
    return f"{len(wrong)} of {len(WORD_SAMPLES)} sample texts differ, such as {min(wrong, key=len)!r}"


def _names(step: Mapping[str, Any]) -> str:
    return " ".join(_names(each) for each in step["normalizers"]) if step["type"] == "Sequence" else str(step["type"])


def _split_of(description: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The patterns of a byte-level tokenizer's pre-tokenizer; None if it has another step."""
    step = description["pre_tokenizer"]
    steps = step["pretokenizers"] if step and step["type"] == "Sequence" else [step]
    patterns = []
    for each in steps:
        kind = each and each["type"]
        if kind == "ByteLevel":
            if each["add_prefix_space"]:
                return None
            patterns += [_GPT2] if each["use_regex"] else []
        elif kind == "Digits" and each["individual_digits"]:
            patterns.append(r"\p{N}")
        elif kind == "Split" and "Regex" in each["pattern"] and each["behavior"] in ("Isolated", "Removed"):
            patterns.append(each["pattern"]["Regex"])
        else:
            return None
    return tuple(patterns)


def closest_split(description: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The rule whose ids differ least from those of a byte-level tokenizer, and the sample texts that differ."""
    original = Backend.from_str(json.dumps(description))
    best: tuple[str, list[str]] | None = None
    for name, patterns in SPLITS.items():
        changed = json.loads(json.dumps(description))
        changed["normalizer"] = None
        changed["model"]["ignore_merges"] = name in _KEEPS_WORDS
        candidate = Backend.from_str(json.dumps(changed))
        candidate.pre_tokenizer = _words(patterns)
        wrong = _differing(original, candidate)
        if best is None or len(wrong) < len(best[1]):
            best = name, wrong
    return best or ("gpt-2", list(WORD_SAMPLES))


def _words(patterns: Sequence[str]) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _write_pieces(description: Mapping[str, Any], tokens: list[str], types: list[int], written: GgufTokenizer) -> None:
    """SentencePiece BPE: llama.cpp merges by score, so a token's score is the rank of the first merge that makes it."""
    model = description["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    last = len(model["merges"])
    written.metadata[f"{_PREFIX}scores"] = [float(-ranks.get(token, last)) for token in tokens]
    written.metadata[f"{_PREFIX}pre"] = "default"
    written.metadata[f"{_PREFIX}add_space_prefix"] = _adds_space(description)


def _adds_space(description: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front of it, from what the tokenizer does."""
    backend = Backend.from_str(json.dumps(description))
    ids = backend.encode("a", add_special_tokens=False).tokens
    return bool(ids) and ids[0].startswith(_SPACE)


def _write_unigram(description: Mapping[str, Any], tokens: list[str], types: list[int], written: GgufTokenizer) -> None:
    scores = dict(description["model"]["vocab"])
    written.metadata[f"{_PREFIX}scores"] = [float(scores.get(token, 0.0)) for token in tokens]
    written.metadata[f"{_PREFIX}pre"] = "default"
    written.metadata[f"{_PREFIX}add_space_prefix"] = _adds_space(description)
    backend = Backend.from_str(json.dumps(description))
    two, one = (backend.encode(text, add_special_tokens=False).ids for text in ("a  b", "a b"))
    written.metadata[f"{_PREFIX}remove_extra_whitespaces"] = two == one
    steps = description["normalizer"]
    steps = steps["normalizers"] if steps and steps["type"] == "Sequence" else [steps] if steps else []
    for step in steps:
        if step["type"] == "Precompiled":
            written.metadata[f"{_PREFIX}precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
    if description["model"].get("byte_fallback"):
        written.notes.append("llama.cpp's unigram has no bytes: a character without a token becomes the unknown token")


def _write_wordpiece(
    description: Mapping[str, Any], tokens: list[str], types: list[int], written: GgufTokenizer
) -> None:
    inside = description["model"]["continuing_subword_prefix"]
    for number, token in enumerate(tokens):
        if types[number] in (NORMAL, UNKNOWN) and not (token.startswith("[") and token.endswith("]")):
            tokens[number] = token.removeprefix(inside) if token.startswith(inside) else _SPACE + token
    written.metadata[f"{_PREFIX}pre"] = "default"
    normalizer = description["normalizer"] or {}
    if not normalizer.get("lowercase"):
        written.notes.append("llama.cpp's WordPiece writes every text in lower case; this tokenizer keeps the case")


_WRITERS = {"gpt2": _write_byte_level, "llama": _write_pieces, "t5": _write_unigram, "bert": _write_wordpiece}


def read_gguf(path: Path) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer of a GGUF file and its configuration (roles, chat templates).

    Raises InputError for a file without a tokenizer, or with one of a kind or splitting rule that is not known here.
    """
    file = gguf_in(path)
    metadata = GgufFile(path if file is None else file).metadata
    kind, tokens = metadata.get(f"{_PREFIX}model"), metadata.get(f"{_PREFIX}tokens")
    if kind not in _READERS or not isinstance(tokens, list) or not tokens:
        raise InputError(
            f"{path}: tokenizer.ggml.model is {format_value(kind)}; known are {', '.join(_READERS)}, with their tokens"
        )
    types = list(metadata.get(f"{_PREFIX}token_type") or [NORMAL] * len(tokens))
    while types and types[-1] == UNUSED and len(types) == len(tokens):  # rows of the embedding without a token
        tokens, types = tokens[:-1], types[:-1]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise InputError(f"{path}: {len(tokens):,} tokens and {len(types):,} types, or a token twice")
    backend = _READERS[kind](path, metadata, tokens, types)
    named = zip(tokens, types, strict=True)
    backend.add_tokens([
        AddedToken(token, special=number != USER_DEFINED, normalized=False)
        for token, number in named
        if number in (CONTROL, USER_DEFINED, UNKNOWN)
    ])  # fmt: skip
    config = _config(metadata, tokens)
    flags = [bool(metadata.get(f"{_PREFIX}add_{name}_token", kind in defaults)) for name, defaults in _ADDED.items()]
    around = around_texts(backend, config, *flags)
    if around is not None:
        backend.post_processor = around
    return backend, config


_ADDED = {"bos": ("llama", "bert"), "eos": ("t5", "bert")}
"""The kinds that add BOS and EOS unless the file says otherwise."""


def _config(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for role, key in _ROLES.items():
        number = metadata.get(_PREFIX + key)
        if isinstance(number, int) and 0 <= number < len(tokens):
            config[f"{role}_token"] = tokens[number]
    templates = {DEFAULT: metadata.get("tokenizer.chat_template")} | {
        name: metadata.get(f"tokenizer.chat_template.{name}") for name in metadata.get("tokenizer.chat_templates", [])
    }
    templates = {name: source for name, source in templates.items() if isinstance(source, str)}
    if templates:
        config["chat_template"] = templates
    return config


def _read_byte_level(path: Path, metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Backend:
    name = metadata.get(f"{_PREFIX}pre", "default")
    if name not in _NAMED:
        raise InputError(
            f"{path}: tokenizer.ggml.pre {format_value(name)} is not known here; known are {', '.join(sorted(_NAMED))}"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [pair for each in metadata.get(f"{_PREFIX}merges", []) if len(pair := tuple(each.split(" ", 1))) == 2]
    known = [pair for pair in merges if all(part in vocabulary for part in (*pair, "".join(pair)))]
    backend = Backend(models.BPE(vocabulary, known, ignore_merges=name in _KEEPS_WORDS))
    backend.pre_tokenizer = _words(_NAMED[name])
    backend.decoder = decoders.ByteLevel()
    return backend


def _read_pieces(path: Path, metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Backend:
    """A SentencePiece tokenizer, through the reader of SentencePiece's own files."""
    scores = metadata.get(f"{_PREFIX}scores") or [0.0] * len(tokens)
    kind = metadata[f"{_PREFIX}model"]
    pieces = [
        SimpleNamespace(piece=token, score=score, type=number)
        for token, score, number in zip(tokens, scores, types, strict=True)
    ]
    roles = {f"{role}_id": metadata.get(_PREFIX + _ROLES[role], -1) for role in ("unk", "bos", "eos", "pad")}
    spec = SimpleNamespace(
        add_dummy_prefix=bool(metadata.get(f"{_PREFIX}add_space_prefix", True)),
        remove_extra_whitespaces=bool(metadata.get(f"{_PREFIX}remove_extra_whitespaces", False)),
        precompiled_charsmap=bytes(each & 255 for each in metadata.get(f"{_PREFIX}precompiled_charsmap", [])),
    )
    trainer = SimpleNamespace(model_type=1 if kind == "t5" else 2, byte_fallback=BYTE in types, **roles)
    model = SimpleNamespace(pieces=pieces, trainer_spec=trainer, normalizer_spec=spec)
    return tokenizer_of_model(model, path, kind if kind == "t5" else None, {"extra_ids": 0}).backend


def _read_wordpiece(path: Path, metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Backend:
    def plain(token: str, number: int) -> str:
        if number not in (NORMAL, UNKNOWN) or (token.startswith("[") and token.endswith("]")):
            return token
        return token.removeprefix(_SPACE) if token.startswith(_SPACE) else f"##{token}"

    vocabulary = {plain(token, types[number]): number for number, token in enumerate(tokens)}
    unknown = tokens[metadata.get(f"{_PREFIX}unknown_token_id", 100 if len(tokens) > 100 else 0)]
    backend = Backend(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


_READERS = {"gpt2": _read_byte_level, "llama": _read_pieces, "t5": _read_pieces, "bert": _read_wordpiece}
