"""Trains tokenizers of each kind; called by `Tokenizer.train`.

Byte-level BPE follows Radford et al. 2019 (GPT-2) with digits split one by one, WordPiece follows BERT (Devlin et al.
2019), Unigram follows Kudo 2018 (https://arxiv.org/abs/1804.10959) with SentencePiece's byte fallback.
"""

from __future__ import annotations

import difflib
import json
import re
import string
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.tokenizers.templates import TEMPLATE_TOKENS

KINDS = ("bpe", "wordpiece", "unigram", "word", "char")
MOST = 4_000_000
"""Limit on the vocabulary size; trainers allocate memory for all of it. Published ones reach 262,144 tokens."""
#: The default of arguments for which None means "no such token".
UNSET: Any = object()

_EOS, _PAD, _UNK, _MASK = "<|endoftext|>", "<|pad|>", "<|unk|>", "<mask>"
_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ASCII = string.ascii_letters + string.digits + string.punctuation
#: Characters per item given to the trainers, which buffer 256 items.
_PIECE = 16_384
_LONGEST_WORD = 1_000
_LONG_RUN = re.compile(rf"\w{{{_LONGEST_WORD}}}|[^\w\s]{{{_LONGEST_WORD}}}|\s{{{_LONGEST_WORD}}}")


FREE_SPACES = r" ?\p{Ll}+| ?\p{Lu}{2,}(?!\p{Ll})|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
"""Lower-case and all-capital words include the space before them; other words, digits and spaces are separate."""


def train_backend(
    texts: Iterable[str],
    *,
    kind: str,
    vocab_size: int,
    special_tokens: Sequence[str],
    chat_template: str | None,
    eos: str | None,
    pad: str | None,
    split_digits: bool,
    lowercase: bool,
    spaces: str = "attached",
) -> tuple[Backend, dict[str, Any]]:
    """The trained `tokenizers.Tokenizer` and the roles of its special tokens; see `Tokenizer.train`."""
    extra = [*special_tokens, *TEMPLATE_TOKENS.get(chat_template or "", ())]
    _check(kind, vocab_size, extra)
    roles = _roles(kind, extra, eos, pad)
    specials = list(dict.fromkeys([*(token for token in roles.values() if token), *extra]))
    _check_room(kind, vocab_size, len(specials))
    if spaces not in ("attached", "free") or (spaces == "free" and kind != "bpe"):
        raise InputError(f"spaces {spaces!r}: allowed are attached, and free for kind bpe")
    counted = _Counted(texts, alphabet=kind == "unigram")
    if kind == "char":
        backend = _train_char(counted, specials)
    elif kind == "wordpiece":
        backend = _train_wordpiece(counted, vocab_size, specials, split_digits, lowercase)
    else:
        backend, trainer = _untrained(kind, vocab_size, specials, split_digits, lowercase)
        if spaces == "free":
            backend.pre_tokenizer = _free_spaces()
        with _enough_for_characters(counted, vocab_size, len(specials)):
            _train(backend, trainer, counted)
    if counted.characters == 0:
        raise _no_text()
    if kind == "unigram":
        backend = _finished_unigram(backend)
    config: dict[str, Any] = {name: token for name, token in roles.items() if token}
    if "eos_token" in config:
        config["bos_token"] = config["eos_token"]
    others = [token for token in specials if token not in config.values()]
    if others:
        config["additional_special_tokens"] = others
    return backend, config


def _check(kind: str, vocab_size: int, special_tokens: Sequence[str]) -> None:
    problems = []
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"kind {kind!r}: allowed are {', '.join(KINDS)}{hint}")
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or not 1 <= vocab_size <= MOST:
        problems.append(f"vocab_size {format_value(vocab_size)}: must be a whole number from 1 to {MOST:,}")
    problems.extend(
        f"special token {token!r}: must be a text that is neither empty nor begins or ends with white space"
        for token in special_tokens
        if not isinstance(token, str) or not token or token != token.strip()
    )
    if problems:
        raise InputError("the tokenizer's settings are wrong", problems)


def _check_room(kind: str, vocab_size: int, special: int) -> None:
    # Byte-level kinds need every byte beside the special tokens; the others one token at least.
    least = special + {"bpe": 256, "unigram": 257}.get(kind, 1)
    if kind != "char" and vocab_size < least:
        raise InputError(
            f"vocab_size {vocab_size}: too small for kind {kind}, which needs at least {least} "
            f"({least - special} of its own and {special} special tokens)"
        )


def _roles(kind: str, extra: Sequence[str], eos: str | None, pad: str | None) -> dict[str, str | None]:
    """Role -> special token, by kind. A character tokenizer only has requested ones."""
    if kind == "wordpiece":
        requested = {"eos_token": eos, "pad_token": pad}
        return _BERT | {role: token for role, token in requested.items() if token is not UNSET}
    default = [token if kind != "char" or token in extra else None for token in (_EOS, _PAD)]
    eos, pad = (token if token is not UNSET else usual for token, usual in zip((eos, pad), default, strict=True))
    roles = {"eos_token": eos, "pad_token": pad, "unk_token": _UNK if kind in ("word", "unigram") else None}
    return roles | ({"mask_token": _MASK} if _MASK in extra else {})


def _untrained(
    kind: str, vocab_size: int, specials: list[str], split_digits: bool, lowercase: bool
) -> tuple[Backend, Any]:
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": _added(specials), "show_progress": False}
    if kind == "bpe":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        return backend, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    if kind == "unigram":
        backend = Backend(models.Unigram())
        lines = pre_tokenizers.Split(Regex(r"\n"), "isolated")
        # No space is added before the first word, so decoding restores the text exactly.
        words = pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.pre_tokenizer = pre_tokenizers.Sequence([lines, *digits, words])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        common["vocab_size"] = max(vocab_size - 256, len(specials) + 1)
        return backend, trainers.UnigramTrainer(unk_token=_UNK, initial_alphabet=list(_ASCII), **common)
    backend = Backend(models.WordLevel(unk_token=_UNK))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), *digits])
    return backend, trainers.WordLevelTrainer(min_frequency=1, **common)


def _free_spaces() -> Any:
    """Splits words as GPT-2 does, but the space before a capitalized word or a digit is a separate piece."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(FREE_SPACES), "isolated"), byte_level])


def _train_char(texts: Iterable[str], specials: list[str]) -> Backend:
    """One token per character in code point order (as in nanoGPT's character data), then the special tokens."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    # A BPE without merges splits into characters, several times faster than a pre-tokenizer would.
    backend = Backend(models.BPE({character: i for i, character in enumerate(sorted(alphabet))}, []))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(_added(specials))
    return backend


def _train_wordpiece(
    texts: _Counted, vocab_size: int, specials: list[str], split_digits: bool, lowercase: bool
) -> Backend:
    """WordPiece as in BERT. Trains twice over a spooled copy, because the trainer numbers the pieces within words
    ("##a") in an order that varies between processes: the second time it gets them sorted."""
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    inside: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as spool:
        for piece in _pieces(texts, cuts_words=True):
            spool.write(piece.replace("\n", " ") + "\n")
        for _ in range(2):
            spool.seek(0)
            backend = Backend(models.WordPiece(unk_token="[UNK]"))
            backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
            backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), *digits])
            backend.decoder = decoders.WordPiece()
            trainer = trainers.WordPieceTrainer(
                vocab_size=vocab_size, special_tokens=_added(specials) + _added(inside), show_progress=False
            )
            _train(backend, trainer, spool)
            inside = sorted(piece for piece in backend.get_vocab() if len(piece) == 3 and piece.startswith("##"))
    least = backend.get_vocab_size()
    if least > vocab_size and texts.characters:
        of = f"{len(specials)} special tokens and {least - len(specials)} characters, within words counted apart"
        raise _too_small("wordpiece", vocab_size, least, of)
    description = json.loads(backend.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] in specials]
    backend = Backend.from_str(json.dumps(description))
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    return backend


def _train(backend: Backend, trainer: Any, texts: Iterable[str]) -> None:
    # a whole-word vocabulary counts words, so no word may be cut
    pieces = _pieces(texts, cuts_words=not isinstance(trainer, trainers.WordLevelTrainer))
    try:
        backend.train_from_iterator(pieces, trainer)
    except BaseException as error:  # a panic in the trainers' Rust code is a BaseException
        if isinstance(texts, _Counted) and texts.ended and texts.characters == 0:
            raise _no_text() from error
        raise


@contextmanager
def _enough_for_characters(texts: _Counted, vocab_size: int, special: int) -> Iterator[None]:
    """Raise InputError with the minimal size if a unigram vocabulary cannot hold every character of its texts.

    The trainer also raises, except when the characters exactly fill the vocabulary; at least one more must fit.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # the trainer raises bare Exception
        if "not large enough to contain all chars" not in str(error):
            raise
        failure = error
    if texts.alphabet is not None and texts.characters:
        characters = len({*_ASCII, *(character if character != " " else "▁" for character in texts.alphabet)})
        least = special + 256 + characters + 1
        if vocab_size < least:
            of = f"{special} special tokens, 256 bytes, {characters} characters of ASCII and of the texts, and a piece"
            raise _too_small("unigram", vocab_size, least, of) from failure
    if failure is not None:
        raise failure


def _too_small(kind: str, vocab_size: int, least: int, of: str) -> InputError:
    return InputError(
        f"vocab_size {vocab_size}: too small for kind {kind} and these texts, which need at least {least} ({of})"
    )


def _finished_unigram(backend: Backend) -> Backend:
    """The trained model made deterministic, with SentencePiece's 256 byte tokens added.

    The trainer sums in varying order, so scores differ by 1e-14 between runs, and the characters that it keeps without
    using them get scores 0.0001 apart, upwards from the lowest, in varying order.
    """
    description = json.loads(backend.to_str())
    model = description["model"]
    first = sum(1 for _, score in model["vocab"] if score == 0.0)
    special, learned = model["vocab"][:first], sorted(model["vocab"][first:], key=lambda piece: piece[1])
    least = learned[0][1] if learned else 0.0
    forced = [i for i, (piece, score) in enumerate(learned) if len(piece) == 1 and _is_step(score - least)]
    names = sorted(learned[i][0] for i in forced)
    for i, name in zip(forced, names, strict=True):
        learned[i] = [name, learned[i][1]]
    learned = sorted(([piece, round(score, 6)] for piece, score in learned), key=lambda piece: (-piece[1], piece[0]))
    present = {piece for piece, _ in special + learned}
    # Far below any sum of learned scores, so that bytes are used only where no piece matches.
    fallback = [[name, -1000.0] for byte in range(256) if (name := f"<0x{byte:02X}>") not in present]
    model["vocab"] = special + learned + fallback
    model["byte_fallback"] = True
    return Backend.from_str(json.dumps(description))


def _is_step(difference: float) -> bool:
    steps = difference / 0.0001
    return abs(steps - round(steps)) < 1e-4


def _added(tokens: Sequence[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _no_text() -> InputError:
    return InputError("there is no text to train a tokenizer on: the source has no characters")


class _Counted:
    """Yields texts and counts their characters; `ended` is True once the texts are exhausted without an error."""

    def __init__(self, texts: Iterable[str], *, alphabet: bool = False):
        self.texts = texts
        self.characters = 0
        self.ended = False
        self.alphabet: set[str] | None = set() if alphabet else None
        """The characters seen, if requested."""

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            if self.alphabet is not None:
                self.alphabet.update(text)
            yield text
        self.ended = True


def _pieces(texts: Iterable[str], *, cuts_words: bool) -> Iterator[str]:
    """Long texts split at spaces, because the trainers buffer many items; splits at spaces do not change word counts.

    `cuts_words` also splits runs of letters, marks or spaces after `_LONGEST_WORD` characters: training time is
    quadratic in word length, and base64 or a table without spaces is a single word.
    """
    for text in texts:
        for part in _short_words(text) if cuts_words else (text,):
            start = 0
            while len(part) - start > 2 * _PIECE:
                end = part.find(" ", start + _PIECE)
                if end < 0:
                    break
                yield part[start:end]
                start = end
            yield part[start:]


def _short_words(text: str) -> Iterator[str]:
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    if start < len(text) or not text:
        yield text[start:]
