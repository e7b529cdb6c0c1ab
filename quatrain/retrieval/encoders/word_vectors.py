"""The weighted mean of word vectors: rare words count more (SIF: Arora et al. 2017). A file of word2vec or GloVe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quatrain.core.reading import exists, sha256_of, user_path
from quatrain.models.text_vectors import words_of
from quatrain.models.word_vectors import WordVectors
from quatrain.retrieval.encoders import unit
from quatrain.retrieval.stores import Vectors
from quatrain.retrieval.words import stop_words

PRIORITY = 1


def accepts(name: str) -> bool:
    """Whether a name is a file of word vectors."""
    return exists(name) and user_path(name).is_file()


def open_encoder(name: str, folder: Path, language: str) -> WordVectorEncoder:
    """The encoder of a file. Raises InputError for a file that holds no word vectors."""
    path = user_path(name)
    return WordVectorEncoder(WordVectors.read(path), f"word vectors {sha256_of(path)[:16]}", stop_words(language))


class WordVectorEncoder:
    """The mean of a text's word vectors, weighted by how rare a word is: files list frequent words first (Zipf)."""

    def __init__(self, vectors: WordVectors, fingerprint: str, stop: frozenset[str]):
        self.vectors, self.fingerprint, self.stop = vectors, fingerprint, stop
        total = sum(1 / rank for rank in range(1, len(vectors) + 1))
        self.frequencies = {word: 1 / rank / total for rank, word in enumerate(vectors.words, 1)}

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        found = np.zeros((len(texts), self.vectors.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            words = [word for word in words_of(text) if word not in self.stop]
            found[row] = self.vectors.sentence(words, frequencies=self.frequencies)
        return unit(found)
