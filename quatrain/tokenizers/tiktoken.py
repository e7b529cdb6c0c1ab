"""Converts tiktoken files to `tokenizers`. A line has the base64 of a token's bytes and its rank, which is its id.

tiktoken repeatedly merges the two neighbours whose union has the lowest rank, and encodes a word that is a token at
once. A byte-level BPE whose merges are all splits of each token into two tokens, in order of rank, gives the same ids.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from quatrain.core.errors import InputError
from quatrain.core.reading import read_bytes
from quatrain.data.decoding import read_blocks
from quatrain.tokenizers.legacy import LegacyTokenizer, all_merges
from quatrain.tokenizers.token_config import MAX_TOKENIZER_BYTES
from quatrain.tokenizers.vocabularies import begins_with

#: The pattern with which Llama 3 splits a text into words.
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3_RANKS = 128_000
_LLAMA_3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{n}|>" for n in range(3, 248))),
)
_GPT_2_RANKS = (50_256, 50_257)
"""GPT-2's, and that of the multilingual Whisper; both split words as GPT-2 does."""


def holds_ranks(file: Path) -> bool:
    """Whether the first line is one of a tiktoken file. The name does not tell: Llama 3's is tokenizer.model."""
    try:
        _rank(read_bytes(file, MAX_TOKENIZER_BYTES)[:4096].partition(b"\n")[0])
    except ValueError:
        return False
    return True


def read_tiktoken(file: Path) -> LegacyTokenizer:
    """The tokenizer of a file of ranks (`.gz` is unpacked).

    The file does not say how words are split; for GPT-2, Whisper and Llama 3, the number of ranks tells. Raises
    InputError for an invalid line, with its number, and for any other number of ranks.
    """
    ranks = _read_ranks(file)
    count = len(ranks)
    if count not in (*_GPT_2_RANKS, _LLAMA_3_RANKS):
        raise InputError(
            f"{file} has {count:,} ranks; the way to split words is known only for {_GPT_2_RANKS[0]:,} (GPT-2), "
            f"{_GPT_2_RANKS[1]:,} (Whisper) and {_LLAMA_3_RANKS:,} (Llama 3). Use the model's tokenizer.json instead"
        )
    letters = _letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    backend = Backend(models.BPE(vocabulary, all_merges(vocabulary, vocabulary), ignore_merges=True))
    backend.decoder = decoders.ByteLevel()
    plain = processors.ByteLevel(trim_offsets=False)
    around: processors.PostProcessor = plain
    specials: tuple[str, ...] = ("<|endoftext|>",)
    roles = {"bos_token": specials[0], "eos_token": specials[0]}
    if count in _GPT_2_RANKS:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        words = pre_tokenizers.Split(Regex(LLAMA_3_WORDS), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
        specials = _LLAMA_3_SPECIAL
        roles = {"bos_token": specials[0], "eos_token": specials[1]}
        around = processors.Sequence([plain, begins_with(specials[0], count)])
    added = [AddedToken(token, special=True, normalized=False) for token in specials]
    return LegacyTokenizer(backend, roles, added, lambda *_: around)


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Token -> rank, ranks being 0, 1, 2, …"""
    ranks: dict[bytes, int] = {}
    problems = []
    for number, line in enumerate(b"".join(read_blocks(file)).splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = _rank(line)
        except ValueError as error:
            problems.append(f"{file.name}:{number}: {error}")
            continue
        if token in ranks or rank != len(ranks):
            problems.append(f"{file.name}:{number}: rank {rank} is out of order, or its token is a duplicate")
        ranks[token] = rank
    if problems:
        raise InputError(f"{file} is not a valid tiktoken file", problems[:8])
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise InputError(f"{file} is not a valid tiktoken file: {missing} of the 256 bytes have no rank")
    return ranks


def _rank(line: bytes) -> tuple[bytes, int]:
    """The token and the rank of a line. Raises ValueError."""
    encoded, _, rank = line.strip().partition(b" ")
    try:
        if not encoded:
            raise ValueError
        # Whisper's last token has no bytes; it is written as base64 padding alone.
        return base64.b64decode(encoded.strip(b"=") and encoded, validate=True), int(rank)
    except (binascii.Error, ValueError):
        raise ValueError(f"{line[:40]!r} is not a token in base64, a space and a rank") from None


def _letters() -> list[str]:
    """The printable character that stands for each byte in a byte-level BPE's tokens (Radford et al. 2019)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    for number, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + number)
    return [letters[byte] for byte in range(256)]
