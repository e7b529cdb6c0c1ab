"""Word and sentence boundaries in a row of token ids, from the tokens alone, without the text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from quatrain.tokenizers.tokenizer import Tokenizer

BYTE_SPACES = {"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"}
"""White space in the alphabet of byte-level tokens (GPT-2's)."""

SENTENCE_ENDS = ".!?…"


class WordBoundaries:
    """Finds word and sentence boundaries in ids of a tokenizer.

    In WordPiece, "##" continues a word. Otherwise a word begins at a space, or at a change between letters, digits and
    other characters, as in GPT-2's pre-tokenization.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.special = tokenizer.special_ids
        self.wordpiece = tokenizer.kind == "wordpiece"
        self.alone = tokenizer.kind == "word"
        written = [tokenizer.id_to_token(each) or "" for each in range(tokenizer.vocab_size)]
        if any("▁" in token for token in written):
            self.pieces = [token.replace("▁", " ") for token in written]
        elif tokenizer.kind == "bpe":
            self.pieces = ["".join(BYTE_SPACES.get(sign, sign) for sign in token) for token in written]
        else:
            self.pieces = written

    def begins(self, ids: Sequence[int]) -> np.ndarray:
        """A mask (T,) of the ids that begin a word; every special token is a word."""
        begins = np.ones(len(ids), dtype=bool)
        for place in range(1, len(ids)):
            begins[place] = self._begins(int(ids[place - 1]), int(ids[place]))
        return begins

    def _begins(self, before: int, token: int) -> bool:
        if self.alone or before in self.special or token in self.special:
            return True
        piece, last = self.pieces[token], self.pieces[before][-1:]
        if self.wordpiece:
            return not piece.startswith("##")
        if not piece or not last or piece[0].isspace():
            return True
        return not last.isspace() and _kind(piece[0]) != _kind(last)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The words of a row, as index ranges [start, end)."""
        starts = [*np.flatnonzero(self.begins(ids)).tolist(), len(ids)]
        return list(pairwise(starts))

    def sentences(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The sentences of a row, as index ranges [start, end). A stop or a special token ends a sentence."""
        ends = [
            place + 1
            for place, token in enumerate(ids)
            if token in self.special or self.pieces[token].rstrip().endswith(tuple(SENTENCE_ENDS))
        ]
        bounds = sorted({0, *ends, len(ids)})
        return list(pairwise(bounds))


def _kind(sign: str) -> str:
    # Outside ASCII a byte-level token may hold part of a character; it stays with its word.
    if sign.isalpha() or ord(sign) > 127:
        return "letter"
    return "digit" if sign.isdigit() else "space" if sign.isspace() else "sign"
