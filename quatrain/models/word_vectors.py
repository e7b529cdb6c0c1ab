"""Word vectors: files of word2vec, GloVe and FastText, nearest words, analogies, similarity sets, sentence vectors.

    vectors = WordVectors.read("glove.6B.50d.txt")
    vectors.nearest("king")                       # [("prince", 0.82), …]
    vectors.analogy("man", "king", "woman")       # man is to king as woman is to …
    vectors.analogies("questions-words.txt")      # with the count of what is covered

Mikolov et al. 2013 (arXiv 1301.3781), Levy and Goldberg 2014 (3CosMul), Arora et al. 2017 (SIF).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import numpy as np

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import user_path
from quatrain.core.settings import did_you_mean
from quatrain.core.wording import format_value, shorten

Array = np.ndarray
Format = Literal["word2vec", "word2vec-binary", "glove"]
"""`word2vec` is also that of FastText: a line with the counts, then a word and its numbers a line; `glove` lacks it."""
LONGEST_WORD = 10_000
ROWS = 64
"""Analogy questions that are answered at once."""


@dataclass
class Coverage:
    """A score over the `covered` of `total` items; the others have a word without a vector."""

    score: float
    right: int
    covered: int
    total: int
    sections: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each section of a file of analogies: right and covered."""


class WordVectors:
    """Words with one vector each: `words` by their numbers, `numbers` by word, `matrix` (V, D) float32."""

    def __init__(self, words: Sequence[str], matrix: Array):
        """Raises InputError unless there is one vector for each word, and no word twice."""
        self.words, self.matrix = list(words), np.asarray(matrix, dtype=np.float32)
        if self.matrix.ndim != 2 or len(self.words) != len(self.matrix):
            raise InputError(
                f"{len(self.words):,} words and a matrix of {self.matrix.shape}: must be a row for each word"
            )
        self.numbers = {word: number for number, word in enumerate(self.words)}
        if len(self.numbers) < len(self.words):
            raise InputError("a word is there twice")
        if not np.isfinite(self.matrix).all():
            raise InputError("the vectors contain NaN or infinite numbers")
        lengths = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        self.unit = self.matrix / np.where(lengths > 0, lengths, 1)
        """The vectors with length 1."""

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.numbers

    def __getitem__(self, word: str) -> Array:
        """The vector of a word. Raises InputError, with similar words, if it has none."""
        return cast(Array, self.matrix[self._number(word)])

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""
        return int(self.matrix.shape[1])

    def _number(self, word: str) -> int:
        if word not in self.numbers:
            near = did_you_mean(word, self.words[:50_000])
            raise InputError(f"{format_value(word)} has no vector among {len(self):,} words{near}")
        return self.numbers[word]

    # Questions

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words' vectors."""
        return float(self.unit[self._number(first)] @ self.unit[self._number(second)])

    def nearest(self, word: str | Array, top: int = 10) -> list[tuple[str, float]]:
        """The `top` words with the largest cosine to a word, itself left out, or to a vector (D,)."""
        if isinstance(word, str):
            left_out, vector = [self._number(word)], self.unit[self._number(word)]
        else:
            left_out, vector = [], word / max(float(np.linalg.norm(word)), 1e-12)
        return self._best(self.unit @ vector, left_out, top)

    def _best(self, scores: Array, left_out: Sequence[int], top: int) -> list[tuple[str, float]]:
        scores = scores.copy()
        scores[list(left_out)] = -np.inf
        order = np.argsort(-scores, kind="stable")[:top]
        return [(self.words[number], float(scores[number])) for number in order if np.isfinite(scores[number])]

    def analogy(
        self, a: str, b: str, c: str, *, method: Literal["add", "multiply"] = "add", top: int = 1
    ) -> list[tuple[str, float]]:
        """a is to b as c is to …: 3CosAdd, cos(x, b) - cos(x, a) + cos(x, c), or 3CosMul. The three are left out."""
        numbers = [self._number(word) for word in (a, b, c)]
        return self._best(self._analogy_scores(np.array([numbers]), method)[0], numbers, top)

    def _analogy_scores(self, questions: Array, method: str) -> Array:
        """Scores (Q, V) of questions (Q, 3)."""
        if method == "add":
            query = self.unit[questions[:, 1]] - self.unit[questions[:, 0]] + self.unit[questions[:, 2]]
            return query @ self.unit.T
        if method != "multiply":
            raise InputError(f"method: {method!r}; must be add or multiply")
        first, second, third = ((self.unit[questions[:, column]] @ self.unit.T + 1) / 2 for column in range(3))
        return second * third / (first + 0.001)

    def odd_one_out(self, words: Sequence[str]) -> str:
        """The word that is farthest from the mean of all of them; words without a vector are left out."""
        known = [word for word in words if word in self]
        if len(known) < 2:
            raise InputError("odd one out: fewer than two of these words have a vector")
        rows = self.unit[[self.numbers[word] for word in known]]
        return known[int((rows @ rows.mean(axis=0)).argmin())]

    # Sets

    def analogies(
        self, path: str | Path, *, method: Literal["add", "multiply"] = "add", lowercase: bool = True
    ) -> Coverage:
        """The share of a file of analogies that is answered right, of those whose four words all have vectors.

        Lines are `: section`, or four words. A question is compared with all words but its own three.
        """
        section, sections, asked, total = "", [], [], 0
        for line in _text(path):
            if line.startswith(":"):
                section = line[1:].strip()
            elif line:
                words = (line.lower() if lowercase else line).split()
                if len(words) != 4:
                    raise InputError(f"{path}: {shorten(line, 60)!r} is no question of four words")
                total += 1
                if all(word in self for word in words):
                    asked.append([self.numbers[word] for word in words])
                    sections.append(section)
        right = np.zeros(len(asked), dtype=bool)
        for start in range(0, len(asked), ROWS):
            part = np.array(asked[start : start + ROWS])
            scores = self._analogy_scores(part[:, :3], method)
            np.put_along_axis(scores, part[:, :3], -np.inf, axis=1)
            right[start : start + ROWS] = scores.argmax(axis=1) == part[:, 3]
        by_section = {
            name: (sum(int(hit) for hit, own in zip(right, sections, strict=True) if own == name), sections.count(name))
            for name in dict.fromkeys(sections)
        }
        return Coverage(float(right.mean()) if asked else 0.0, int(right.sum()), len(asked), total, by_section)

    def similarities(self, path: str | Path, *, lowercase: bool = True) -> Coverage:
        """Spearman's correlation of the cosines with people's scores, of the pairs whose words both have vectors.

        Lines have two words and a number, separated by tabs; those that begin with "#" are comments.
        """
        cosines, scores, total = [], [], 0
        for line in _text(path):
            if not line or line.startswith("#"):
                continue
            cells = line.split("\t")
            try:
                first, second, score = cells[0].strip(), cells[1].strip(), float(cells[2])
            except (IndexError, ValueError) as error:
                raise InputError(f"{path}: {shorten(line, 60)!r} is not two words and a number") from error
            total += 1
            if lowercase:
                first, second = first.lower(), second.lower()
            if first in self and second in self:
                cosines.append(self.similarity(first, second))
                scores.append(score)
        correlation = _spearman(np.array(cosines), np.array(scores)) if len(scores) > 1 else 0.0
        return Coverage(correlation, 0, len(scores), total)

    # Sentences

    def sentence(
        self, words: Sequence[str], *, frequencies: Mapping[str, float] | None = None, a: float = 1e-3
    ) -> Array:
        """The mean of the words' vectors, (D,). With `frequencies` (shares of a text) each weighs a / (a + p): SIF."""
        known = [word for word in words if word in self]
        if not known:
            return np.zeros(self.dimensions, dtype=np.float32)
        weights = np.array([1.0 if frequencies is None else a / (a + frequencies.get(word, 0.0)) for word in known])
        rows = self.matrix[[self.numbers[word] for word in known]]
        return cast(Array, ((weights[:, None] * rows).sum(axis=0) / len(known)).astype(np.float32))

    def sentences(
        self, texts: Sequence[Sequence[str]], *, frequencies: Mapping[str, float] | None = None, a: float = 1e-3
    ) -> Array:
        """Vectors of sentences (N, D). With `frequencies` by SIF, whose first common direction is taken out."""
        found = np.stack([self.sentence(words, frequencies=frequencies, a=a) for words in texts])
        if frequencies is None or len(found) < 2:
            return found
        common = np.linalg.svd(found, full_matrices=False)[2][0]
        return found - np.outer(found @ common, common)

    # Files

    @classmethod
    def read(cls, path: str | Path, format: Format | None = None, *, limit: int | None = None) -> Self:
        """The vectors of a file in one of the `Format`s, plain or gzip; by default the format is found out.

        `limit` reads only the first words. Raises InputError that names the place where a file is damaged.
        """
        place = user_path(path, "the word vectors")
        format = format or _detect(place)
        with _opened(place) as file:
            if format == "word2vec-binary":
                words, rows = _read_binary(file, place, limit)
            else:
                words, rows = _read_text(file, place, format == "word2vec", limit)
        if not words:
            raise InputError(f"{place}: has no words.")
        first = {word: number for number, word in reversed(list(enumerate(words)))}
        if len(first) < len(words):  # Some published files have a word twice: the first one counts.
            kept = sorted(first.values())
            words, rows = [words[number] for number in kept], rows[kept]
        return cls(words, rows)

    def write(self, path: str | Path, format: Format = "word2vec") -> None:
        """Writes the vectors; a word with a space in it is refused, since a file could not tell where it ends."""
        if wrong := [word for word in self.words if not word or any(character.isspace() for character in word)]:
            raise InputError(f"{format_value(wrong[0])}: a file of word vectors cannot hold a word with a space")
        if format == "word2vec-binary":
            with atomic_write(path, "wb") as file:
                file.write(f"{len(self)} {self.dimensions}\n".encode())
                for word, row in zip(self.words, self.matrix, strict=True):
                    file.write(word.encode() + b" " + row.astype("<f4").tobytes() + b"\n")
            return
        with atomic_write(path) as file:
            if format == "word2vec":
                file.write(f"{len(self)} {self.dimensions}\n")
            for word, row in zip(self.words, self.matrix, strict=True):
                file.write(f"{word} {' '.join(np.format_float_positional(x, trim='-') for x in row)}\n")


def _spearman(first: Array, second: Array) -> float:
    ranks = [_ranks(values) for values in (first, second)]
    spread = ranks[0].std() * ranks[1].std()
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread) if spread else 0.0


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return cast(Array, (np.cumsum(counts) - (counts - 1) / 2)[inverse])


def _opened(path: Path) -> IO[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.") from error


def _text(path: str | Path) -> Iterator[str]:
    with _opened(user_path(path, "the set")) as file:
        for line in file:
            yield line.decode("utf-8", errors="replace").strip()


def _detect(path: Path) -> Format:
    """The format of a file: binary if the bytes after the header are no line of numbers."""
    with _opened(path) as file:
        header = file.readline(LONGEST_WORD)
        cells = header.split()
        if len(cells) != 2 or not all(cell.isdigit() for cell in cells):
            return "glove"
        line = file.readline(LONGEST_WORD * 10)
    numbers = line.split()
    return "word2vec" if len(numbers) == int(cells[1]) + 1 and all(map(_is_number, numbers[1:])) else "word2vec-binary"


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _header(file: IO[bytes], path: Path) -> tuple[int, int]:
    cells = file.readline(LONGEST_WORD).split()
    if len(cells) != 2 or not all(cell.isdigit() for cell in cells) or not 0 < int(cells[1]) <= 100_000:
        raise InputError(f"{path}: does not begin with the number of words and of dimensions")
    return int(cells[0]), int(cells[1])


def _read_text(file: IO[bytes], path: Path, has_header: bool, limit: int | None) -> tuple[list[str], Array]:
    count, width = _header(file, path) if has_header else (None, 0)
    words: list[str] = []
    rows: list[Array] = []
    for number, line in enumerate(file, 2 if has_header else 1):
        if limit is not None and len(words) >= limit:
            break
        cells = line.rstrip().split(b" ")
        if cells == [b""]:
            continue
        width = width or len(cells) - 1
        # A word may have spaces in it (GloVe 840B): the numbers are the last cells.
        try:
            row = np.array(cells[-width:], dtype=np.float32)
        except ValueError:
            row = np.zeros(0, dtype=np.float32)
        if len(cells) <= width or len(row) != width or not width:
            raise InputError(f"{path}, line {number}: {len(cells) - 1} cells after the word; must be {width} numbers")
        words.append(b" ".join(cells[:-width]).decode("utf-8", errors="replace"))
        rows.append(row)
    if count is not None and limit is None and len(words) != count:
        raise InputError(f"{path}: {len(words):,} words; the first line says {count:,}. The file is cut or damaged.")
    return words, np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def _read_binary(file: IO[bytes], path: Path, limit: int | None) -> tuple[list[str], Array]:
    count, width = _header(file, path)
    content = file.read() if limit is None else file.read(limit * (4 * width + 100))
    words: list[str] = []
    rows: list[Array] = []
    start = 0
    for _ in range(count if limit is None else min(count, limit)):
        end = content.find(b" ", start, start + LONGEST_WORD)
        if end < 0 or end + 1 + 4 * width > len(content):
            raise InputError(
                f"{path}: {len(words):,} words; the first line says {count:,}. The file is cut or damaged."
            )
        words.append(content[start:end].lstrip(b"\n").decode("utf-8", errors="replace"))
        rows.append(np.frombuffer(content, dtype="<f4", count=width, offset=end + 1))
        start = end + 1 + 4 * width
    return words, np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)


def gensim_model(
    sentences: Any, method: Literal["skip_gram", "cbow", "fasttext", "doc2vec"] = "skip_gram", **options: Any
) -> Any:
    """A model that gensim trains on sentences, lists of words (for Doc2Vec documents).

    `options` are gensim's: `vector_size`, `window`, `epochs`, `negative`, `hs=1` for hierarchical softmax, `min_n` and
    `max_n` for the subwords of FastText. gensim has no Sent2Vec: that is ours, `training.objectives.word_vectors`.
    Raises InputError without gensim.
    """
    with require("Training by gensim", "gensim", "classic"):
        from gensim.models import Doc2Vec, FastText, Word2Vec
        from gensim.models.doc2vec import TaggedDocument
    makers = {
        "skip_gram": lambda: Word2Vec(sentences, sg=1, **options),
        "cbow": lambda: Word2Vec(sentences, sg=0, **options),
        "fasttext": lambda: FastText(sentences, **options),
        "doc2vec": lambda: Doc2Vec([TaggedDocument(words, [n]) for n, words in enumerate(sentences)], **options),
    }
    if method not in makers:
        raise InputError(f"method: {method!r}; must be one of {', '.join(makers)}")
    return makers[method]()


def of_gensim(model: Any) -> WordVectors:
    """The word vectors of a model that gensim has trained."""
    return WordVectors(model.wv.index_to_key, model.wv.vectors)
