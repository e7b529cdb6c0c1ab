"""The bytes that each token adds to a text, for constraints on the text rather than on ids.

They come from the tokenizer's decoder: byte-level BPE writes bytes as printable characters (Radford et al. 2019),
SentencePiece writes spaces as "▁" and rare bytes as "<0xE6>". A text is the bytes of its tokens in a row; only its
first token may have others, since many decoders drop a space at the beginning. A sample of decoded texts checks this.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from quatrain.core.errors import InputError
from quatrain.generation.text import REPLACEMENT, TokenizerLike

SAMPLES = 200
"""Decoded texts that are compared with the bytes of their tokens."""
REMEMBERED = 1000
"""Texts whose completing tokens are remembered."""


def _byte_alphabet() -> dict[str, int]:
    """The printable character of byte-level BPE for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Vocabulary:
    """The text of a tokenizer's tokens.

    `pieces[id]` are the bytes that a token adds to a text, `first_pieces[id]` those of a text that begins with it;
    empty for special tokens, which decoding skips, and for ids without a token. Raises InputError for a tokenizer whose
    texts are not the pieces of their tokens in a row.
    """

    def __init__(self, tokenizer: TokenizerLike):
        backend: Any = getattr(tokenizer, "backend", None)
        if backend is None:
            raise InputError("Constraints on text need a tokenizer of quatrain.tokenizers, whose tokens have a text.")
        self.tokenizer = tokenizer
        self._completing: dict[str, list[tuple[bytes, list[int]]]] = {}
        entries: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.pieces = [b""] * (max(entries.values(), default=-1) + 1)
        decoders = str(json.loads(backend.to_str())["decoder"])
        added = {token: info.content for token, info in backend.get_added_tokens_decoder().items()}
        alphabet = _byte_alphabet()
        for written, token in entries.items():
            if token in tokenizer.special_ids:
                continue
            if token in added:
                self.pieces[token] = added[token].encode()
            elif "ByteLevel" in decoders:
                self.pieces[token] = b"".join(
                    bytes([alphabet[each]]) if each in alphabet else each.encode() for each in written
                )
            elif token in getattr(tokenizer, "byte_ids", ()):
                self.pieces[token] = bytes([int(written[3:-1], 16)])
            elif "Metaspace" in decoders or "▁" in decoders:
                self.pieces[token] = written.replace("▁", " ").encode()
            else:
                self.pieces[token] = self._after_another(token)
        self.first_pieces = self.pieces
        if "ByteLevel" not in decoders:
            self.first_pieces = [
                self.tokenizer.decode([token]).encode() if piece and _valid(piece) is not None else piece
                for token, piece in enumerate(self.pieces)
            ]
        self._check()

    def _after_another(self, token: int) -> bytes:
        """What a token adds after another one, by the decoder itself."""
        before = self.tokenizer.decode([token])
        return self.tokenizer.decode([token, token])[len(before) :].encode()

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The first token of each piece."""
        return {piece: token for token, piece in reversed(list(enumerate(self.pieces))) if piece}

    def text(self, ids: Sequence[int]) -> bytes:
        """The bytes of the text of some ids."""
        there = [token for token in ids if token < len(self.pieces) and self.pieces[token]]
        return b"".join([self.first_pieces[token] for token in there[:1]] + [self.pieces[token] for token in there[1:]])

    def completing(self, text: str) -> list[tuple[bytes, list[int]]]:
        """After which bytes which tokens complete a text: each beginning of it, with the tokens that begin with the
        rest; and with no beginning, the tokens that contain it.
        """
        if text not in self._completing:
            word = text.encode()
            whole = [
                token
                for token, (piece, first) in enumerate(zip(self.pieces, self.first_pieces, strict=True))
                if word in piece or word in first
            ]
            cuts = [(word[:cut], self._beginning_with(word[cut:])) for cut in range(1, len(word))]
            while len(self._completing) >= REMEMBERED:
                self._completing.pop(next(iter(self._completing)))
            self._completing[text] = [(start, tokens) for start, tokens in [(b"", whole), *cuts] if tokens]
        return self._completing[text]

    def _beginning_with(self, start: bytes) -> list[int]:
        """The tokens whose pieces begin with some bytes."""
        found = []
        for place in range(bisect_left(self._sorted, (start, -1)), len(self._sorted)):
            piece, token = self._sorted[place]
            if not piece.startswith(start):
                break
            found.append(token)
        return found

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((piece, token) for token, piece in enumerate(self.pieces))

    def _check(self) -> None:
        """Raises InputError unless the text of random tokens is their pieces."""
        usable = [token for token, piece in enumerate(self.pieces) if piece and _valid(piece) is not None]
        choice = random.Random(0)
        for _ in range(SAMPLES if usable else 0):
            ids = choice.choices(usable, k=choice.randint(1, 6))
            expected, text = self.text(ids).decode(), self.tokenizer.decode(ids)
            if expected != text and REPLACEMENT not in text:
                raise InputError(
                    "This tokenizer changes the text of tokens by their neighbours, so constraints on text cannot be "
                    f"kept: its tokens {ids} give {text!r}, not {expected!r}."
                )


def _valid(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None
