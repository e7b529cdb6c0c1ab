"""Converts SentencePiece models to `tokenizers`, with the ids of SentencePiece.

T5, mT5 and Marian have unigram models (Kudo 2018, https://arxiv.org/abs/1804.10959); Llama, Mistral, Gemma and Phi-3
have BPE models with byte fallback. SentencePiece (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226)
normalizes a text by a character map in the model file, writes "▁" for a space and, in most models, adds one before the
text.

Two differences from SentencePiece: special tokens in a text become their ids, as in transformers; and `tokenizers`
applies the character map to whole graphemes, so that rare ones (a compatibility character with combining marks) are
normalized differently.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.reading import read_bytes
from quatrain.tokenizers.legacy import LegacyTokenizer, all_merges, read_json
from quatrain.tokenizers.token_config import MAX_TOKENIZER_BYTES, content_of

SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_COMPATIBLE = ("ﬁ", "①", "Ａ", "½", "e\u0301")
"""Characters that tell whether a character map is NFKC, the default of SentencePiece."""
_SEPARATORS = ("Zs", "Zl", "Zp", "Cc", "Cf")
_NEVER = -1e6
"""The score of a piece that is never chosen."""
_LAST_RESORT = -1e3
"""The score of a piece that is chosen only if no other covers its text."""


def read_sentencepiece(file: Path, family: str | None, config: dict[str, Any]) -> LegacyTokenizer:
    """The tokenizer of a SentencePiece model by a family's rules.

    For family "t5", EOS ends a text and the sentinels <extra_id_0> … follow the model's pieces. Otherwise the model's
    BOS begins a text, or EOS ends it if there is no BOS. `add_bos_token` and `add_eos_token` of the configuration
    override this. Raises InputError for an invalid file, another kind of model, or without the `sentencepiece` extra.
    """
    return tokenizer_of_model(read_model(file), file, family, config)


def tokenizer_of_model(model: Any, file: Path, family: str | None, config: dict[str, Any]) -> LegacyTokenizer:
    """The tokenizer of a `ModelProto`, or of an object with its fields, as for `read_sentencepiece`."""
    trainer = model.trainer_spec
    if trainer.model_type == _UNIGRAM:
        vocabulary = _unigram_scores(model)
        bytes_known = any(piece.type == _BYTE for piece in model.pieces)
        backend = Backend(models.Unigram(vocabulary, unk_id=_unknown(model, file), byte_fallback=bytes_known))
        if bytes_known and "<" not in dict(vocabulary):
            # Otherwise "<0x41>" in a text would become the byte, because no piece has a "<".
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
    return LegacyTokenizer(backend, roles, tokens, lambda backend, config: around_texts(backend, config, *adds))


def read_marian(folder: Path, config: dict[str, Any], *, target: bool) -> LegacyTokenizer:
    """Marian's tokenizer of the source or the target language: one SentencePiece model each, ids from `vocab.json`.

    A token like ">>fra<<" before the text names the target language. Pieces that vocab.json lacks are split further.
    Raises InputError for a missing or broken file.
    """
    lists = "target_vocab.json" if target and (folder / "target_vocab.json").is_file() else "vocab.json"
    side = "target.spm" if target else "source.spm"
    absent = [name for name in (lists, "source.spm", "target.spm") if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"the tokenizer at {folder} is incomplete: {' and '.join(absent)} missing; Marian has source.spm, "
            "target.spm and vocab.json"
        )
    model, ids = read_model(folder / side), read_json(folder / lists)
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"{folder / lists} is not a vocabulary: its {len(ids)} ids are not 0, 1, 2, …, each once")
    if "<unk>" not in ids:
        raise InputError(f"{folder / lists} has no <unk>, which Marian's tokenizers need")
    if model.trainer_spec.model_type != _UNIGRAM:
        raise InputError(f"{folder / side} is not a unigram model, which Marian needs")
    scores = {piece.piece: _shortest(piece.score) for piece in model.pieces if piece.type == _NORMAL}
    # Single characters of the other language are used only for text that the pieces of this one do not cover.
    vocabulary = [
        (piece, scores.get(piece, _LAST_RESORT if len(piece) == 1 else _NEVER))
        for piece in sorted(ids, key=lambda piece: ids[piece])
    ]
    backend = Backend(models.Unigram(vocabulary, unk_id=ids["<unk>"], byte_fallback=False))
    # SentencePiece makes one unknown piece of several unknown characters in a row, which vocab.json lacks too.
    characters = {SPACE, " ", *(piece for piece in scores if len(piece) == 1)}
    unknown_run = normalizers.Replace(Regex(f"[^{''.join(map(_literally, sorted(characters)))}]{{2,}}"), "\U0010ffff")
    _set_text_rules(backend, model, folder / side, first_only=False, more=[unknown_run])
    roles = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    languages = [piece for piece in ids if piece.startswith(">>") and piece.endswith("<<")]
    known = [*(token for token in roles.values() if token in ids), *languages]
    tokens = [AddedToken(token, special=True, normalized=False) for token in known]
    return LegacyTokenizer(backend, roles, tokens, lambda backend, config: around_texts(backend, config, False, True))


def read_model(file: Path) -> Any:
    """The `ModelProto` of a SentencePiece file.

    Raises InputError for an invalid file, an unsupported kind of model, or without the `sentencepiece` extra.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2 as schema
    except ImportError as error:
        raise InputError(
            f"{file} is a SentencePiece model; reading it needs sentencepiece and protobuf, which are not installed. "
            "Install them with: pip install 'quatrain[sentencepiece]'. A tokenizer.json beside it needs neither"
        ) from error
    except Exception as error:  # protobuf's VersionError: made for a newer one
        raise InputError(
            f"{file} is a SentencePiece model, and the installed sentencepiece and protobuf are incompatible "
            f"({error}). Reinstall both: pip install -U sentencepiece protobuf"
        ) from error
    data = read_bytes(file, MAX_TOKENIZER_BYTES)
    try:
        model = getattr(schema, "ModelProto").FromString(data)  # noqa: B009 - made when the module is imported
        pieces = len([piece.piece for piece in model.pieces])
    except Exception as error:  # protobuf's DecodeError, or UnicodeDecodeError of a piece
        raise InputError(
            f"cannot read {file}: it is not a valid SentencePiece model ({error}). Download it again"
        ) from error
    if not pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise InputError(
            f"cannot read {file}: it is not a complete SentencePiece model ({len(data):,} bytes, {pieces:,} pieces, no "
            "settings). Download it again"
        )
    problems = []
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        problems.append(f"model_type {model.trainer_spec.model_type}: allowed are 1 (unigram) and 2 (BPE)")
    if model.trainer_spec.treat_whitespace_as_suffix:
        problems.append("treat_whitespace_as_suffix: only models with the space before a word are supported")
    if not model.normalizer_spec.escape_whitespaces:
        problems.append("escape_whitespaces off: only models that write a space as ▁ are supported")
    if problems:
        raise InputError(f"{file} is a SentencePiece model of an unsupported kind", problems)
    return model


def _unigram_scores(model: Any) -> list[tuple[str, float]]:
    """Each piece with its score in a segmentation."""

    def score(piece: Any) -> float:
        if piece.type == _NORMAL:
            return _shortest(piece.score)
        if piece.type == _USER_DEFINED:
            return -0.1  # SentencePiece's score for a piece that is preferred to any other segmentation
        # Control, unknown and byte pieces stand for no text, so they must never be chosen.
        return _NEVER

    return [(piece.piece, score(piece)) for piece in model.pieces]


def _shortest(score: float) -> float:
    """A float32 score in nine digits, which identify it; tokenizer.json restores longer numbers inexactly."""
    return float(f"{score:.9g}")


def _bpe(model: Any, file: Path) -> Backend:
    """A BPE model whose merges follow from the pieces and their scores."""
    names = [piece.piece for piece in model.pieces]
    normal = [piece for piece in model.pieces if piece.type == _NORMAL]
    # A character that occurs in longer pieces but has only a byte piece (Gemma's tab) needs a token to be merged.
    for character in {character for piece in normal for character in piece.piece} - set(names):
        byte = f"<0x{ord(character):02X}>"
        if ord(character) < 128 and byte in names:
            names[names.index(byte)] = character
    vocabulary = {name: number for number, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise InputError(f"cannot read {file}: it has duplicate pieces")
    by_score = (piece.piece for piece in sorted(normal, key=lambda piece: -piece.score))
    backed = model.trainer_spec.byte_fallback
    unknown = names[_unknown(model, file)]
    defined = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    isolate = [] if _keeps_text(model) else defined
    backend = Backend(
        models.BPE(
            vocabulary,
            all_merges(by_score, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=backed,
            ignore_merges=bool(isolate),
        )
    )
    if isolate:
        # Added tokens would split the text, and each part would be normalized separately.
        longest_first = sorted(isolate, key=len, reverse=True)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(_literally, longest_first))), "isolated")
    return backend


def _keeps_text(model: Any) -> bool:
    """Whether normalization changes only spaces, to "▁", as Gemma's does."""
    spec = model.normalizer_spec
    return not (spec.add_dummy_prefix or spec.remove_extra_whitespaces or spec.precompiled_charsmap)


def _set_text_rules(backend: Backend, model: Any, file: Path, *, first_only: bool, more: Sequence[Any] = ()) -> None:
    """Set normalizer and decoder from the model file; also the pre-tokenizer if only the first word gets a space."""
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

    `tokenizers` maps whole graphemes: if the map changes the first character of one, its combining marks are lost.
    Characters that can carry marks are therefore mapped before: compatibility characters, and other kinds of spaces.
    """
    try:
        by_map = normalizers.Precompiled(compiled)
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(
            f"cannot read {file}: its normalization map is invalid ({error}). Download it again"
        ) from error
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
    index = next((number for number, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None)
    if index is None:
        raise InputError(f"cannot read {file}: it has no unknown piece, so it is not a complete SentencePiece model")
    return index


def _sentinels(model: Any, config: dict[str, Any]) -> list[AddedToken]:
    """T5's sentinels in descending order (Raffel et al. 2020): the last id is <extra_id_0>. [] if they are pieces."""
    if any("<extra_id_" in piece.piece for piece in model.pieces):
        return []
    count = int(config.get("extra_ids", 100) or 0)
    return [AddedToken(f"<extra_id_{n}>", special=True, normalized=False) for n in range(count - 1, -1, -1)]


def around_texts(backend: Backend, config: dict[str, Any], bos: bool, eos: bool) -> processors.PostProcessor | None:
    """BOS before and EOS after a text, each text of a pair alone."""
    tokens = []
    for role, added in (("bos", bos), ("eos", eos)):
        token = content_of(config.get(f"{role}_token")) if added else None
        number = backend.token_to_id(token) if token else None
        tokens.append((token, number) if number is not None else None)
    first, last = tokens
    single = [*([f"{first[0]}:%"] if first else []), "$:%", *([f"{last[0]}:%"] if last else [])]
    if len(single) == 1:
        return None
    a = " ".join(each.replace("$", "$A").replace("%", "0") for each in single)
    b = " ".join(each.replace("$", "$B").replace("%", "1") for each in single)
    return processors.TemplateProcessing(a, f"{a} {b}", [each for each in dict.fromkeys(tokens) if each])


def _literally(text: str) -> str:
    """A regular expression of `tokenizers` that matches this text."""
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)
