"""Latent semantic analysis of the chunks themselves: the first singular directions of their words. No download.

Deerwester et al. 1990, with log-entropy weights (Dumais 1991). Fitted when the index is built; later chunks are
projected onto the same directions, until the collection has grown by a quarter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.core.reading import parse_json
from quatrain.models.text_vectors import (
    Vocabulary,
    check_lsa,
    count_matrix,
    entropy_weights,
    log_counts,
    lsa,
    normalized,
)
from quatrain.retrieval.encoders import unit
from quatrain.retrieval.stores import Vectors
from quatrain.retrieval.words import Analyzer

NAME = "lsa"
PRIORITY = 2
DIMENSIONS = 200
MOST_WORDS = 50_000
"""The most frequent words that count."""
GROWTH = 1.25
"""How much larger a collection may be than the one that the directions were fitted on."""
FILE = "lsa.safetensors"


def accepts(name: str) -> bool:
    """Whether a name means LSA."""
    return name == NAME


def open_encoder(name: str, folder: Path, language: str) -> LsaEncoder | None:
    """The encoder that was fitted and saved in a folder; None if there is none, or it is of another language."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in ("weights", "directions")}
            if about.get("language") != language:
                return None
            words = parse_json(about["words"], str(path), list)
            return LsaEncoder(
                words, tensors["weights"], tensors["directions"], Analyzer(language), int(about["chunks"])
            )
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. Delete it and run quatrain index again") from error


def fit(texts: Iterable[str], language: str) -> LsaEncoder:
    """The encoder of the texts of all chunks, read once. A collection too small for `DIMENSIONS` has fewer."""
    analyzer = Analyzer(language)
    rows = [analyzer(text) for text in texts]
    vocabulary = Vocabulary(rows, max_size=MOST_WORDS)
    counts = count_matrix([vocabulary.encode(row) for row in rows], len(vocabulary))
    weights = entropy_weights(counts)
    weights[0] = 0  # words beyond the most frequent ones
    matrix = normalized(log_counts(counts, weights))
    most = min(DIMENSIONS, min(matrix.shape) - 1)
    directions = lsa(matrix, most)[1] if most >= 1 else np.ones((1, len(vocabulary)))
    return LsaEncoder(vocabulary.itos, weights, directions, analyzer, len(rows))


class LsaEncoder:
    """Texts to vectors of `DIMENSIONS` numbers."""

    def __init__(
        self, words: Sequence[str], weights: np.ndarray, directions: np.ndarray, analyzer: Analyzer, chunks: int
    ):
        self.words, self.weights, self.directions = words, weights, directions
        self.analyzer, self.chunks = analyzer, chunks
        self._numbers = {word: number for number, word in enumerate(words)}
        digest = hashlib.sha256(np.ascontiguousarray(directions, dtype="<f4").tobytes()).hexdigest()
        self.fingerprint = f"lsa {directions.shape[0]} {analyzer.language} {digest[:16]}"

    def fits(self, chunks: int) -> bool:
        """Whether the directions still suit a collection of so many chunks."""
        return self.chunks / GROWTH <= chunks <= self.chunks * GROWTH

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        numbers = self._numbers
        ids = [[numbers[word] for word in self.analyzer(text) if word in numbers] for text in texts]
        return unit(
            np.asarray(normalized(log_counts(count_matrix(ids, len(self.words)), self.weights)) @ self.directions.T)
        )

    def save(self, folder: Path) -> None:
        """Write the words and the directions, whole or not at all."""
        from safetensors.numpy import save

        tensors = {"weights": self.weights, "directions": self.directions}
        about = {
            "language": self.analyzer.language,
            "chunks": str(self.chunks),
            "words": json.dumps(list(self.words)),
        }
        with atomic_write(folder / FILE, "wb") as file:
            file.write(save({key: np.ascontiguousarray(each, np.float32) for key, each in tensors.items()}, about))


def check() -> None:
    """Raises InputError where scikit-learn is missing, before anything is read."""
    check_lsa()
