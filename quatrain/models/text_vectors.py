"""Texts as vectors: vocabularies, one-hot, bags of words, TF-IDF by two formulas, hashing, LSA; search over documents.

The formulas are written out here; the matrices are sparse (SciPy) and the singular value decomposition is
scikit-learn's. Both come with the extra `classic`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.libraries import require

Array = np.ndarray
WORDS = r"\w\w+"
"""scikit-learn's words: at least two letters or digits."""
UNKNOWN = "<unk>"


def words_of(text: str, pattern: str = WORDS, *, lowercase: bool = True, ngrams: int = 1) -> list[str]:
    """The words of a text, and their n-grams up to `ngrams` words, joined by spaces."""
    words = re.findall(pattern, text.lower() if lowercase else text)
    return words + [" ".join(words[i : i + n]) for n in range(2, ngrams + 1) for i in range(len(words) - n + 1)]


class Vocabulary:
    """Words and their numbers: `stoi` maps a word to its number, `itos` lists the words. Number 0 is `<unk>`."""

    def __init__(self, texts: Iterable[Sequence[str]], *, min_count: int = 1, max_size: int | None = None):
        """Of texts that are lists of words: the words that occur at least `min_count` times, the most frequent first;
        at most `max_size` of them, `<unk>` included.
        """
        counts = Counter(word for text in texts for word in text)
        kept = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
        self.itos: list[str] = [UNKNOWN, *(word for word in kept if word != UNKNOWN)][:max_size]
        self.stoi: dict[str, int] = {word: number for number, word in enumerate(self.itos)}

    def __len__(self) -> int:
        return len(self.itos)

    def encode(self, words: Sequence[str]) -> list[int]:
        """Words to numbers; an unknown word gets that of `<unk>`."""
        return [self.stoi.get(word, 0) for word in words]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Numbers to words."""
        return [self.itos[number] for number in ids]


def one_hot(ids: Sequence[int], size: int) -> Array:
    """One row for each id, with a single 1: (N, size). Any two different rows are equally far apart."""
    found = np.zeros((len(ids), size), dtype=np.float32)
    found[np.arange(len(ids)), ids] = 1
    return found


def count_matrix(documents: Sequence[Sequence[int]], size: int, *, binary: bool = False) -> Any:
    """Bags of words: how often each document contains each id, a sparse matrix (D, size). `binary`: whether it does."""
    sparse = _scipy()
    rows = np.repeat(np.arange(len(documents)), [len(each) for each in documents])
    columns = np.concatenate([np.zeros(0, np.int64), *(np.asarray(each, dtype=np.int64) for each in documents)])
    found = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(documents), size))
    found.sum_duplicates()
    if binary:
        found.data[:] = 1
    return found


def document_frequencies(counts: Any) -> Array:
    """In how many documents each word is, of a matrix of counts (D, V): (V,)."""
    return np.asarray((counts > 0).sum(axis=0)).ravel()


def idf(frequencies: Array, documents: int, formula: Literal["course", "sklearn"] = "course") -> Array:
    """The weight of each word by how few documents have it.

    `course`: log(N / df), 0 for a word that is in every document, and for one that is in none.
    `sklearn`: log((1 + N) / (1 + df)) + 1, as if one more document had every word: never 0.
    """
    if formula == "sklearn":
        return np.log((1 + documents) / (1 + frequencies)) + 1
    if formula != "course":
        raise InputError(f"formula: {formula!r}; must be course or sklearn")
    return np.where(frequencies > 0, np.log(documents / np.maximum(frequencies, 1)), 0.0)


def tf_idf(counts: Any, weights: Array, *, normalize: bool = False) -> Any:
    """tf · idf of a matrix of counts (D, V), where tf is the count. `normalize` makes each row's length 1, as
    scikit-learn does; the course's formula leaves it.
    """
    found = counts.multiply(weights[None]).tocsr()
    return normalized(found) if normalize else found


def entropy_weights(counts: Any) -> Array:
    """The weight of each word by how unevenly the documents (D, V) have it: 1 in a single document, 0 in all alike.

    1 + sum(p log p) / log D, where p is a document's share of the word (Dumais 1991): the global part of log-entropy.
    """
    entries = counts.tocoo()
    totals = np.maximum(np.asarray(counts.sum(axis=0)).ravel(), 1)
    shares = entries.data / totals[entries.col]
    entropy = np.bincount(entries.col, weights=shares * np.log(shares), minlength=counts.shape[1])
    return 1 + entropy / max(np.log(counts.shape[0]), 1e-12) if counts.shape[0] > 1 else np.ones(counts.shape[1])


def log_counts(counts: Any, weights: Array) -> Any:
    """log(1 + tf) · weight of a matrix of counts (D, V): with `entropy_weights`, log-entropy."""
    found = counts.tocsr(copy=True)
    found.data = np.log1p(found.data)
    return found.multiply(weights[None]).tocsr()


def normalized(matrix: Any) -> Any:
    """The rows of a matrix with length 1; empty rows stay empty."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return _scipy().diags(1 / np.where(lengths > 0, lengths, 1)) @ matrix


def hashed(texts: Iterable[Sequence[str]], buckets: int) -> list[list[int]]:
    """The hashing trick: a number below `buckets` for each word, without a vocabulary; words may share one.

    The numbers follow from the CRC of the word, so that they are the same in every process.
    """
    return [[zlib.crc32(word.encode()) % buckets for word in text] for text in texts]


def check_lsa() -> None:
    """Raises InputError where scikit-learn, which `lsa` needs, is not installed."""
    from importlib.util import find_spec

    with require("LSA", "scikit-learn", "classic"):
        if find_spec("sklearn") is None:
            raise ModuleNotFoundError("sklearn")


def lsa(matrix: Any, dimensions: int, *, seed: int = 0) -> tuple[Array, Array]:
    """Latent semantic analysis: the truncated singular value decomposition of a matrix (D, V).

    Returns the documents' vectors (D, K) and the directions (K, V): `matrix @ directions.T` are the vectors.
    """
    check_lsa()
    from sklearn.decomposition import TruncatedSVD

    most = min(matrix.shape) - 1
    if not 1 <= dimensions <= most:
        raise InputError(f"dimensions: {dimensions}; must be from 1 to {most} for a matrix of {matrix.shape}")
    model = TruncatedSVD(dimensions, random_state=seed)
    return model.fit_transform(matrix), model.components_


class DocumentSearch:
    """Finds the documents nearest to a query by the cosine of their TF-IDF vectors, or of LSA's with `dimensions`."""

    def __init__(
        self,
        documents: Sequence[str],
        *,
        formula: Literal["course", "sklearn"] = "course",
        ngrams: int = 1,
        dimensions: int | None = None,
    ):
        if not documents:
            raise InputError("There are no documents to search.")
        self.documents, self.ngrams = list(documents), ngrams
        texts = [words_of(document, ngrams=ngrams) for document in documents]
        self.vocabulary = Vocabulary(texts)
        counts = count_matrix([self.vocabulary.encode(text) for text in texts], len(self.vocabulary))
        self.weights = idf(document_frequencies(counts), len(documents), formula)
        self.matrix = normalized(tf_idf(counts, self.weights))
        self.directions: Array | None = None
        if dimensions is not None:
            _, self.directions = lsa(self.matrix, dimensions)

    def search(self, query: str, top: int = 5) -> list[tuple[int, float]]:
        """The numbers of the `top` nearest documents and their cosines; none that share no word with the query."""
        ids = [number for number in self.vocabulary.encode(words_of(query, ngrams=self.ngrams)) if number]
        if not ids:
            return []
        vector = normalized(tf_idf(count_matrix([ids], len(self.vocabulary)), self.weights))
        if self.directions is None:
            cosines = np.asarray((self.matrix @ vector.T).todense()).ravel()
        else:
            documents, asked = self.matrix @ self.directions.T, vector @ self.directions.T
            lengths = np.linalg.norm(documents, axis=1) * np.linalg.norm(asked)
            cosines = (documents @ asked.T).ravel() / np.where(lengths > 0, lengths, 1)
        order = np.argsort(-cosines, kind="stable")[:top]
        return [(int(number), float(cosines[number])) for number in order if cosines[number] > 0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.documents)


def _scipy() -> Any:
    with require("Sparse matrices", "SciPy", "classic"):
        from scipy import sparse
    return sparse
