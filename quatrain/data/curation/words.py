"""Splits texts into words at tens of megabytes a second and answers questions about all words of a text at once.

A text is cut at white space into chunks. What a chunk becomes (words, or a hash) does not depend on its neighbours, so
that it is computed once and kept as bytes: a text is then one join of the bytes of its chunks, and its words are a
NumPy array. `EnglishWords` are those of spaCy's English tokenizer, which the open reproductions of Gopher's and
FineWeb's rules use: 40 times faster here, and equal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from quatrain.core.libraries import require
from quatrain.data.curation.arrays import Array

MOST_CHUNKS = 1_000_000
"""Chunks that a table keeps. When it is full, all are forgotten."""
TABLE_BYTES = 250_000_000
"""The most memory of a full table."""
LONGEST_CHUNK = 64
"""Characters of a chunk that is kept; longer ones are rare, and computed each time."""


class ChunkBytes(dict[str, bytes]):
    """A chunk -> the bytes of `compute(chunk)`, computed once."""

    def __init__(self, compute: Callable[[str], bytes]):
        super().__init__()
        self.compute = compute

    def __missing__(self, chunk: str) -> bytes:
        value = self.compute(chunk)
        if len(chunk) <= LONGEST_CHUNK:
            self[chunk] = value
        return value

    def join(self, chunks: list[str]) -> bytes:
        """The bytes of all chunks in a row."""
        if len(self) > MOST_CHUNKS:
            self.clear()
        return b"".join(map(self.__getitem__, chunks))


class WordHashes:
    """Words without case and punctuation as 64-bit hashes: for duplicates and overlaps.

    "The cat's, ends" and "the cats ends" have the same words; punctuation alone is no word.
    """

    def __init__(self) -> None:
        self.chunks = ChunkBytes(self._hash)

    @staticmethod
    def _hash(chunk: str) -> bytes:
        word = "".join(filter(str.isalnum, chunk.casefold()))
        return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() if word else b""

    def of(self, text: str) -> Array:
        """The hashes (N,) uint64 of the words of a text."""
        return np.frombuffer(self.chunks.join(text.split()), dtype=np.uint64)

    def spans(self, text: str) -> tuple[Array, list[tuple[int, int]]]:
        """The hashes, and where each word begins and ends in the text."""
        found, places = [], []
        for match in re.finditer(r"\S+", text):
            value = self.chunks[match.group()]
            if value:
                found.append(value)
                places.append(match.span())
        return np.frombuffer(b"".join(found), dtype=np.uint64), places


@cache
def word_hashes() -> WordHashes:
    """The hashes of words of this process, shared by all steps."""
    return WordHashes()


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def window_hashes(words: Array, size: int) -> Array:
    """The hashes (N - size + 1,) uint64 of all runs of `size` words; empty for a shorter text."""
    count = len(words) - size + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    result = words[:count].copy()
    for offset in range(1, size):
        result *= _MULTIPLIER
        result ^= result >> np.uint64(29)
        result += words[offset : offset + count]
    result *= _MULTIPLIER
    result ^= result >> np.uint64(32)
    return result


class Feature:
    """A number for each word, computed once a word. `of(ids)` gives those of all words of a text."""

    def __init__(self, table: EnglishWords, compute: Callable[[str], int], dtype: Any = np.int32):
        self.table, self.compute = table, compute
        self.values = np.zeros(1024, dtype=dtype)
        self.known = 0

    def of(self, ids: Array) -> Array:
        """The numbers (N,) of the words (N,)."""
        words = self.table.words
        if self.known < len(words):
            if len(words) > len(self.values):
                self.values = np.resize(self.values, max(len(words), 2 * len(self.values)))
            for place in range(self.known, len(words)):
                self.values[place] = self.compute(words[place])
            self.known = len(words)
        result: Array = self.values[ids]
        return result


class EnglishWords:
    """The words of English texts as ids, which are only valid until the next text.

    `features` are numbers of words, by name. Raises InputError without spaCy.
    """

    def __init__(self) -> None:
        self._tokenizer = _spacy_tokenizer()
        self.words: list[str] = []
        self.numbers: dict[str, int] = {}
        self.chunks = ChunkBytes(self._ids)
        self.features: dict[str, Feature] = {}
        self._last: tuple[str, Array] = ("", np.empty(0, dtype=np.int32))

    def feature(self, name: str, compute: Callable[[str], int], dtype: Any = np.int32) -> Feature:
        """The feature of this name, made at its first use."""
        if name not in self.features:
            self.features[name] = Feature(self, compute, dtype)
        return self.features[name]

    def ids(self, text: str) -> Array:
        """The ids (N,) int32 of the words of a text. White space is no word."""
        if self._last[0] is text:
            return self._last[1]
        if len(self.chunks) > MOST_CHUNKS:
            self.chunks.clear()
            self.words.clear()
            self.numbers.clear()
            for feature in self.features.values():
                feature.known = 0
        found = np.frombuffer(self.chunks.join(text.split()), dtype=np.int32)
        self._last = (text, found)
        return found

    def _ids(self, chunk: str) -> bytes:
        return np.array([self._id(word) for word in self._split(chunk)], dtype=np.int32).tobytes()

    def _split(self, chunk: str) -> list[str]:
        # Long chunks (base64, addresses) are slow to split by rules; they are cut, as white space would.
        parts = [chunk[at : at + 100_000] for at in range(0, len(chunk), 100_000)]
        return [word for part in parts for token in self._tokenizer(part) if (word := token.text.strip())]

    def _id(self, word: str) -> int:
        number = self.numbers.get(word)
        if number is None:
            number = self.numbers[word] = len(self.words)
            self.words.append(word)
        return number


@cache
def english_words() -> EnglishWords:
    """The words of this process, shared by all steps."""
    return EnglishWords()


def _spacy_tokenizer() -> Callable[[str], Any]:
    with require("counting words as C4, Gopher and FineWeb do", "spaCy", "data"):
        import spacy
    tokenizer: Callable[[str], Any] = spacy.blank("en").tokenizer
    return tokenizer


@cache
def sentence_ends() -> frozenset[str]:
    """The words that end a sentence in spaCy's sentencizer."""
    from spacy.pipeline import Sentencizer

    return frozenset(Sentencizer.default_punct_chars)
