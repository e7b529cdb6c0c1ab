"""Tokenizers of SentencePiece models, rebuilt so that they give SentencePiece's own ids.

Unigram models (Kudo 2018, https://arxiv.org/abs/1804.10959) are T5's, mT5's and Marian's; BPE models with bytes for
what is unknown are Llama's, Mistral's, Gemma's and Phi-3's. SentencePiece (Kudo and Richardson 2018,
https://arxiv.org/abs/1808.06226) first normalizes a text by a map that its file holds, writes "▁" for a space and, as
most models say, puts one before the text.

Special tokens are the one difference from SentencePiece, and the field's rule: written out in a text they become their
ids. The map is applied by `tokenizers`, which goes by whole graphemes; on rare ones (a compatibility character followed
by combining marks) it departs from SentencePiece's own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.reading import read_bytes
from quatrain.tokenizers.legacy import LegacyTokenizer, read_json
from quatrain.tokenizers.token_config import MAX_TOKENIZER_BYTES, content_of

SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_COMPATIBLE = ("ﬁ", "①", "Ａ", "½", "e\u0301")
"""What a map changes if it is that of NFKC, SentencePiece's usual one."""
_SEPARATORS = ("Zs", "Zl", "Zp", "Cc", "Cf")
_NEVER = -1e6
"""A score with which a piece is in no most probable split."""
_LAST_RESORT = -1e3
"""A score with which a piece is used only where nothing else covers its text."""


def read_sentencepiece(file: Path, family: str | None, config: dict[str, Any]) -> LegacyTokenizer:
    """The tokenizer of a SentencePiece model by a family's rules.

    Of family "t5" it ends a text with EOS and has the sentinels <extra_id_0> … after the model's pieces; any other
    begins a text with the model's BOS, or ends it with EOS where there is no BOS; `add_bos_token` and `add_eos_token`
    of the configuration have the last word. Raises InputError for a broken file or a model of another kind, and where
    the `sentencepiece` extra is not installed.
    """
    model = read_model(file)
    trainer = model.trainer_spec
    if trainer.model_type == _UNIGRAM:
        vocabulary = _unigram_scores(model)
        bytes_known = any(piece.type == _BYTE for piece in model.pieces)
        backend = Backend(models.Unigram(vocabulary, unk_id=_unknown(model, file), byte_fallback=bytes_known))
        if bytes_known and "<" not in dict(vocabulary):
            # Else "<0x41>" written out in a text would be the byte, for want of another way to write its "<".
            backend.pre_tokenizer = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated")
    else:
        backend = _bpe(model, file)
    first_only = config.get("legacy") is False
    _set_text_rules(backend, model, file, first_only=first_only)
    tokens = [AddedToken(piece.piece, special=True, normalized=False) for piece in _special(model)]
    if trainer.model_type == _BPE and _keeps_text(model):
        defined = (piece.piece for piece in model.pieces if piece.type == _USER_DEFINED)
        tokens += [AddedToken(piece, special=False, normalized=True) for piece in defined]
    if family == "t5":
        tokens += _sentinels(model, config)
    roles = {
        f"{role}_token": model.pieces[number].piece
        for role, number in zip(("unk", "bos", "eos", "pad"), _role_ids(model), strict=True)
        if 0 <= number < len(model.pieces)
    }
    begins = family != "t5" and "bos_token" in roles
    adds = (config.get("add_bos_token", begins), config.get("add_eos_token", not begins))
    return LegacyTokenizer(backend, roles, tokens, lambda backend, config: _around(backend, config, *adds))


def read_marian(folder: Path, config: dict[str, Any], *, target: bool) -> LegacyTokenizer:
    """Marian's tokenizer of the source or the target language: one SentencePiece model each, ids from `vocab.json`.

    A target language is named by a token like ">>fra<<" before the text. Pieces that vocab.json lacks are cut further.
    Raises InputError for a missing or broken file.
    """
    lists = "target_vocab.json" if target and (folder / "target_vocab.json").is_file() else "vocab.json"
    side = "target.spm" if target else "source.spm"
    absent = [name for name in (lists, "source.spm", "target.spm") if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"no whole tokenizer at {folder}: {' and '.join(absent)} not there; Marian's has source.spm, target.spm "
            "and vocab.json"
        )
    model, ids = read_model(folder / side), read_json(folder / lists)
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"{folder / lists} is no vocabulary: its {len(ids)} ids are not 0, 1, 2, … each once")
    if "<unk>" not in ids:
        raise InputError(f"{folder / lists} has no <unk>, which Marian's tokenizers need")
    if model.trainer_spec.model_type != _UNIGRAM:
        raise InputError(f"{folder / side} is no unigram model, as Marian's are")
    scores = {piece.piece: _shortest(piece.score) for piece in model.pieces if piece.type == _NORMAL}
    # The other language's single characters are what is left for a text that is not of this one.
    vocabulary = [
        (piece, scores.get(piece, _LAST_RESORT if len(piece) == 1 else _NEVER))
        for piece in sorted(ids, key=lambda piece: ids[piece])
    ]
    backend = Backend(models.Unigram(vocabulary, unk_id=ids["<unk>"], byte_fallback=False))
    # SentencePiece takes a row of characters that it does not know for one piece; vocab.json does not know it either.
    characters = {SPACE, " ", *(piece for piece in scores if len(piece) == 1)}
    unknown_run = normalizers.Replace(Regex(f"[^{''.join(map(_literally, sorted(characters)))}]{{2,}}"), "\U0010ffff")
    _set_text_rules(backend, model, folder / side, first_only=False, more=[unknown_run])
    roles = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    languages = [piece for piece in ids if piece.startswith(">>") and piece.endswith("<<")]
    known = [*(token for token in roles.values() if token in ids), *languages]
    tokens = [AddedToken(token, special=True, normalized=False) for token in known]
    return LegacyTokenizer(backend, roles, tokens, lambda backend, config: _around(backend, config, False, True))


def read_model(file: Path) -> Any:
    """The `ModelProto` of a SentencePiece file.

    Raises InputError where it is not whole, of a kind that is not read, or the `sentencepiece` extra is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2 as schema
    except ImportError as error:
        raise InputError(
            f"{file} is a SentencePiece model; reading it needs sentencepiece and protobuf, which are not installed. "
            "Install them with: pip install 'quatrain[sentencepiece]'. A tokenizer.json beside it is read without them"
        ) from error
    except Exception as error:  # protobuf's VersionError: made for a newer one
        raise InputError(
            f"{file} is a SentencePiece model, and the installed sentencepiece and protobuf do not fit together "
            f"({error}). Install both anew: pip install -U sentencepiece protobuf"
        ) from error
    data = read_bytes(file, MAX_TOKENIZER_BYTES)
    try:
        model = getattr(schema, "ModelProto").FromString(data)  # noqa: B009 - made when the module is imported
        pieces = len([piece.piece for piece in model.pieces])
    except Exception as error:  # protobuf's DecodeError, or UnicodeDecodeError of a piece
        raise InputError(f"cannot read {file}: it is no whole SentencePiece model ({error}). Get it again") from error
    if not pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise InputError(
            f"cannot read {file}: it is no whole SentencePiece model ({len(data):,} bytes, {pieces:,} pieces and then "
            "no settings). Get it again"
        )
    problems = []
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        problems.append(f"model_type {model.trainer_spec.model_type}: allowed are 1 (unigram) and 2 (BPE)")
    if model.trainer_spec.treat_whitespace_as_suffix:
        problems.append("treat_whitespace_as_suffix: only models that put the space before a word are read")
    if not model.normalizer_spec.escape_whitespaces:
        problems.append("escape_whitespaces off: only models that write a space as ▁ are read")
    if problems:
        raise InputError(f"{file} is a SentencePiece model of a kind that is not read", problems)
    return model


def _unigram_scores(model: Any) -> list[tuple[str, float]]:
    """Each piece with the score that SentencePiece gives it in a split."""

    def score(piece: Any) -> float:
        if piece.type == _NORMAL:
            return _shortest(piece.score)
        if piece.type == _USER_DEFINED:
            return -0.1  # the library's own figure for "better than any other way to write it"
        # Control, unknown and byte pieces stand for no text; far down they are in no split.
        return _NEVER

    return [(piece.piece, score(piece)) for piece in model.pieces]


def _shortest(score: float) -> float:
    """A float32 score in the digits that tell it apart: longer ones are read back from tokenizer.json a bit off."""
    return float(f"{score:.9g}")


def _bpe(model: Any, file: Path) -> Backend:
    """A BPE model with the merges that its pieces stand for."""
    names = [piece.piece for piece in model.pieces]
    normal = [piece for piece in model.pieces if piece.type == _NORMAL]
    # A character that is a piece only as a byte, yet part of longer pieces (Gemma's tab), must be there to be joined.
    for character in {character for piece in normal for character in piece.piece} - set(names):
        byte = f"<0x{ord(character):02X}>"
        if ord(character) < 128 and byte in names:
            names[names.index(byte)] = character
    vocabulary = {name: number for number, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise InputError(f"cannot read {file}: it has pieces twice")
    backed = model.trainer_spec.byte_fallback
    unknown = names[_unknown(model, file)]
    defined = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    isolate = [] if _keeps_text(model) else defined
    backend = Backend(
        models.BPE(
            vocabulary,
            _merges(normal, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=backed,
            ignore_merges=bool(isolate),
        )
    )
    if isolate:
        # As added tokens they would part the text, and each part would be normalized by itself.
        longest_first = sorted(isolate, key=len, reverse=True)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(_literally, longest_first))), "isolated")
    return backend


def _keeps_text(model: Any) -> bool:
    """Whether normalization leaves a text as it is but for the sign of a space, as Gemma's does."""
    spec = model.normalizer_spec
    return not (spec.add_dummy_prefix or spec.remove_extra_whitespaces or spec.precompiled_charsmap)


def _merges(normal: Iterable[Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join a piece of two others, best piece first: SentencePiece joins the best, whatever its parts."""
    return [
        (name[:at], name[at:])
        for name in (piece.piece for piece in sorted(normal, key=lambda piece: -piece.score))
        for at in range(len(name) - 1, 0, -1)
        if name[:at] in vocabulary and name[at:] in vocabulary
    ]


def _set_text_rules(backend: Backend, model: Any, file: Path, *, first_only: bool, more: Sequence[Any] = ()) -> None:
    """Normalizer and decoder as the model's file says, the pre-tokenizer where only the first word gets a space."""
    spec = model.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps += _map(spec.precompiled_charsmap, file)
    if spec.remove_extra_whitespaces:
        for pattern, text in ((r"\A +", ""), (rf"[ {SPACE}]+\z", ""), (" {2,}", " ")):
            steps.append(normalizers.Replace(Regex(pattern), text))
    prefix = spec.add_dummy_prefix
    if prefix and first_only:
        first = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        before = backend.pre_tokenizer
        backend.pre_tokenizer = first if before is None else pre_tokenizers.Sequence([first, before])
    elif prefix:
        steps.append(normalizers.Prepend(SPACE))
    if not (prefix and first_only):
        steps.append(normalizers.Replace(" ", SPACE))
    if steps or more:
        backend.normalizer = normalizers.Sequence([*steps, *more])
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding)


def _map(compiled: bytes, file: Path) -> list[Any]:
    """The steps of a model's normalization map.

    `tokenizers` goes by whole graphemes: where the map changes the first character of one, the marks that follow are
    lost. What can carry marks is changed beforehand: compatibility characters, and the spaces that have other names.
    """
    try:
        by_map = normalizers.Precompiled(compiled)
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"cannot read {file}: its normalization map is broken ({error}). Get it again") from error
    steps: list[Any] = []
    if all(by_map.normalize_str(each) == unicodedata.normalize("NFKC", each) for each in _COMPATIBLE):
        steps.append(normalizers.NFKC())
    separators = [chr(each) for each in range(0x30000) if unicodedata.category(chr(each)) in _SEPARATORS]
    for text in (" ", ""):
        changed = [each for each in (*separators, SPACE) if each != text and by_map.normalize_str(each) == text]
        if changed:
            steps.append(normalizers.Replace(Regex(f"[{''.join(map(_literally, changed))}]"), text))
    return [*steps, by_map]


def _special(model: Any) -> list[Any]:
    return [piece for piece in model.pieces if piece.type in (_CONTROL, _UNKNOWN)]


def _role_ids(model: Any) -> tuple[int, int, int, int]:
    trainer = model.trainer_spec
    return trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id


def _unknown(model: Any, file: Path) -> int:
    found = next((number for number, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None)
    if found is None:
        raise InputError(f"cannot read {file}: it has no unknown piece, so it is no whole SentencePiece model")
    return found


def _sentinels(model: Any, config: dict[str, Any]) -> list[AddedToken]:
    """T5's sentinels, counted down (Raffel et al. 2020): the last id is <extra_id_0>; none where the model has them."""
    if any("<extra_id_" in piece.piece for piece in model.pieces):
        return []
    count = int(config.get("extra_ids", 100) or 0)
    return [AddedToken(f"<extra_id_{n}>", special=True, normalized=False) for n in range(count - 1, -1, -1)]


def _around(backend: Backend, config: dict[str, Any], bos: bool, eos: bool) -> processors.PostProcessor | None:
    """BOS before and EOS after a text, each text of a pair alone."""
    found = []
    for role, wanted in (("bos", bos), ("eos", eos)):
        token = content_of(config.get(f"{role}_token")) if wanted else None
        number = backend.token_to_id(token) if token else None
        found.append((token, number) if number is not None else None)
    first, last = found
    single = [*([f"{first[0]}:%"] if first else []), "$:%", *([f"{last[0]}:%"] if last else [])]
    if len(single) == 1:
        return None
    a = " ".join(each.replace("$", "$A").replace("%", "0") for each in single)
    b = " ".join(each.replace("$", "$B").replace("%", "1") for each in single)
    return processors.TemplateProcessing(a, f"{a} {b}", [each for each in dict.fromkeys(found) if each])


def _literally(text: str) -> str:
    """A regular expression of `tokenizers` that matches this text."""
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)
