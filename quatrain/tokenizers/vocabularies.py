"""Reads the vocabulary files older than tokenizer.json: byte-level BPE and WordPiece.

`vocab.json` and `merges.txt` are those of GPT-2 (Radford et al. 2019), also used by RoBERTa, BART, OPT, Phi and Qwen
with other special tokens and other rules for splitting words. `vocab.txt` is that of BERT (Devlin et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.reading import read_bytes
from quatrain.tokenizers.legacy import LARGEST_ID, LegacyTokenizer, read_json
from quatrain.tokenizers.token_config import MAX_TOKENIZER_BYTES, content_of

#: The pattern with which Qwen2 and Qwen3 split words; each digit is a word.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHOWN = 8
"""Problems of a file that a message lists."""


@dataclass(frozen=True)
class _Rules:
    """How a family splits words and which special tokens it adds around a text. `words` None is GPT-2's pattern."""

    roles: dict[str, str] = field(default_factory=dict)
    words: str | None = None
    compose: bool = False
    around: str = "nothing"


_END = "<|endoftext|>"
_FAIRSEQ = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
_RULES = {
    "gpt2": _Rules({"bos": _END, "eos": _END, "unk": _END}),
    "gpt_neox": _Rules({"bos": _END, "eos": _END, "unk": _END}, compose=True),
    "qwen2": _Rules({"eos": _END, "pad": _END}, words=QWEN_WORDS, compose=True),
    "opt": _Rules({"bos": "</s>", "eos": "</s>", "unk": "</s>", "pad": "<pad>"}, around="bos"),
    "roberta": _Rules(_FAIRSEQ, around="cls and sep"),
}


def read_byte_level(folder: Path, family: str | None, config: dict[str, Any]) -> LegacyTokenizer:
    """The tokenizer of `vocab.json` and `merges.txt` by a family's rules.

    If `family` is None, the special tokens of the vocabulary tell OPT, RoBERTa and GPT-2 apart. Raises InputError, with
    entries and lines, for files that are invalid or do not match each other.
    """
    vocabulary = _read_vocabulary(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt", vocabulary)
    rules = _RULES.get(family or "", _RULES[_guess(vocabulary)])
    try:
        model = models.BPE(vocabulary, merges, unk_token=_unknown(vocabulary, rules, folder))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"cannot read the tokenizer files in {folder}: {error}") from error
    backend = Backend(model)
    prefix = bool(config.get("add_prefix_space", False))
    if rules.compose:
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=rules.words is None)
    if rules.words is None:
        backend.pre_tokenizer = byte_level
    else:
        words = pre_tokenizers.Split(Regex(rules.words), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    backend.decoder = decoders.ByteLevel()
    roles = {f"{role}_token": token for role, token in rules.roles.items() if token in vocabulary}
    # RoBERTa's mask token absorbs the space before it.
    special = [
        AddedToken(token, special=True, normalized=False, lstrip=token == "<mask>")
        for token in dict.fromkeys(roles.values())
    ]
    return LegacyTokenizer(backend, roles, special, lambda backend, config: _around(backend, rules, config, prefix))


def _guess(vocabulary: dict[str, int]) -> str:
    if [vocabulary.get(token) for token in ("<s>", "<pad>", "</s>")] == [0, 1, 2]:
        return "roberta" if "<mask>" in vocabulary else "opt"
    return "gpt2"


def _unknown(vocabulary: dict[str, int], rules: _Rules, folder: Path) -> str | None:
    """The unknown token, None if the vocabulary has all bytes."""
    missing = [each for each in pre_tokenizers.ByteLevel.alphabet() if each not in vocabulary]
    unknown = rules.roles.get("unk")
    if missing and unknown not in vocabulary:
        raise InputError(
            f"{folder / 'vocab.json'} is not the vocabulary of a byte-level BPE: {len(missing)} of the 256 bytes have "
            "no token of their own, and there is no unknown token, so text would be lost"
        )
    return unknown if missing else None


def _around(backend: Backend, rules: _Rules, config: dict[str, Any], prefix: bool) -> processors.PostProcessor:
    """The post-processor, which adds special tokens around a text or a pair of texts."""
    if rules.around == "cls and sep":
        sep, cls = (_with_id(backend, config, role, rules.roles[role]) for role in ("sep", "cls"))
        return processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=prefix)
    plain = processors.ByteLevel(trim_offsets=False)
    if not config.get("add_bos_token", rules.around == "bos"):
        return plain
    return processors.Sequence([plain, begins_with(*_with_id(backend, config, "bos", rules.roles.get("bos", _END)))])


def _with_id(backend: Backend, config: dict[str, Any], role: str, usual: str) -> tuple[str, int]:
    """The special token of a role and its id. Raises InputError if the vocabulary has none."""
    token = content_of(config.get(f"{role}_token")) or usual
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise InputError(f"the vocabulary has no {token!r}, the {role} token that is added to every text")
    return token, token_id


def begins_with(token: str, token_id: int) -> processors.PostProcessor:
    """A post-processor that adds one token before every text."""
    return processors.TemplateProcessing(f"{token}:0 $A:0", f"{token}:0 $A:0 {token}:1 $B:1", [(token, token_id)])


def _read_vocabulary(file: Path) -> dict[str, int]:
    """Token -> id of a vocab.json."""
    read = read_json(file)
    problems = [
        f"{token!r}: id {number!r:.40} is not a whole number from 0 to {LARGEST_ID:,}"
        for token, number in read.items()
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= LARGEST_ID
    ]
    if not problems and len(set(read.values())) < len(read):
        first: dict[int, str] = {}
        for token, number in read.items():
            if first.setdefault(number, token) != token:
                problems.append(f"{token!r}: id {number} is also the id of {first[number]!r}")
    if problems or not read:
        raise InputError(f"{file} is not a vocabulary (a JSON object of tokens and ids)", _some(problems))
    return read


def _read_merges(file: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, in order."""
    merges: list[tuple[str, str]] = []
    problems: list[str] = []
    for number, line in enumerate(_lines(file), 1):
        if (number == 1 and line.startswith("#version")) or not line:
            continue
        left, space, right = line.partition(" ")
        if not space or not left or not right or " " in right:
            problems.append(f"{file.name}:{number}: {line!r:.60} is not a pair of tokens with one space between them")
            continue
        problems.extend(
            f"{file.name}:{number}: {token!r} is not in vocab.json; the files do not belong together"
            for token in (left, right, left + right)
            if token not in vocabulary
        )
        merges.append((left, right))
    if problems:
        raise InputError(f"{file} is not valid", _some(problems))
    return merges


def read_wordpiece(file: Path, config: dict[str, Any]) -> LegacyTokenizer:
    """BERT's tokenizer of a `vocab.txt`.

    The configuration's `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` apply; without the first, the
    vocabulary is lower-case if it has no "A". Raises InputError for a file that is not text, has a duplicate token, or
    lacks a special token.
    """
    roles = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    named = {role: content_of(config.get(f"{role}_token")) or token for role, token in roles.items()}
    vocabulary: dict[str, int] = {}
    problems = []
    for number, token in enumerate(_lines(file)):
        if token in vocabulary:
            problems.append(f"{file.name}:{number + 1}: {token!r} is already in line {vocabulary[token] + 1}")
        vocabulary.setdefault(token, number)
    if problems:
        raise InputError(f"{file} has duplicate tokens, so the ids are ambiguous", _some(problems))
    lacking = [f"it has no {named[role]!r}" for role in ("unk", "sep", "cls") if named[role] not in vocabulary]
    if lacking:
        raise InputError(f"{file} is not the vocabulary of a WordPiece tokenizer like BERT's", lacking)
    backend = Backend(models.WordPiece(vocabulary, unk_token=named["unk"], max_input_chars_per_word=100))
    lowercase = config.get("do_lower_case")
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase="A" not in vocabulary if lowercase is None else bool(lowercase),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    present = {role: token for role, token in named.items() if token in vocabulary}
    cls, sep = named["cls"], named["sep"]
    around = processors.TemplateProcessing(
        f"{cls}:0 $A:0 {sep}:0",
        f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        [(token, vocabulary[token]) for token in (cls, sep)],
    )
    special = [AddedToken(token, special=True, normalized=False) for token in present.values()]
    return LegacyTokenizer(
        backend, {f"{role}_token": token for role, token in present.items()}, special, lambda *_: around
    )


def _lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file, split only at line feeds because vocabularies have other separators as tokens."""
    data = read_bytes(file, MAX_TOKENIZER_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file.name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8. Download {file} again, or convert it to "
            "UTF-8"
        ) from error
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{file} is empty")
    return lines


def _some(problems: list[str]) -> list[str]:
    """The first of many problems, and how many more there are."""
    more = len(problems) - _SHOWN
    return problems if more <= 0 else [*problems[:_SHOWN], f"… and {more:,} more"]
