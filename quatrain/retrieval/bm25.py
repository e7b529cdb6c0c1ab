"""BM25 over the chunks of an index: the scores of bm25s, in Lucene's form, which is never negative.

Robertson & Zaragoza 2009; bm25s: Lù 2024 (arXiv 2407.03618).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.core.atomic import disk_errors, sync_folder, temporary_name, write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.retrieval.words import Analyzer, import_bm25s

K1, B = 1.5, 0.75
ABOUT = "chunks.json"


class Bm25:
    """Scores of chunks for a question. `ids` are those of the chunks, in the order of the scores."""

    def __init__(self, model: Any, ids: NDArray[np.int64], analyzer: Analyzer):
        self._model, self.ids, self.analyzer = model, ids, analyzer

    @classmethod
    def build(cls, texts: Iterable[str], ids: Sequence[int], analyzer: Analyzer) -> Bm25:
        """Of the texts of chunks, which are read once. Raises InputError without bm25s."""
        vocabulary: dict[str, int] = {}
        rows = [[vocabulary.setdefault(word, len(vocabulary)) for word in analyzer(text)] for text in texts]
        model = import_bm25s().BM25(k1=K1, b=B, method="lucene")
        # bm25s cannot count an empty collection; one unused word makes it whole.
        vocabulary.setdefault("", len(vocabulary))
        if rows:
            model.index((rows, vocabulary), show_progress=False)
        else:
            model.vocab_dict = {}
        return cls(model, np.asarray(ids, dtype=np.int64), analyzer)

    def scores(self, question: str) -> NDArray[np.float32]:
        """A score of each chunk, 0 for one without a word of the question."""
        known = [word for word in self.analyzer(question) if word in self._model.vocab_dict]
        if not known:
            return np.zeros(len(self.ids), dtype=np.float32)
        return np.asarray(self._model.get_scores(known), dtype=np.float32)

    def document_frequency(self, word: str) -> int:
        """In how many chunks a word of the analyzer is."""
        number = self._model.vocab_dict.get(word)
        if number is None or number + 1 >= len(self._model.scores["indptr"]):
            return 0
        bounds = self._model.scores["indptr"]
        return int(bounds[number + 1] - bounds[number])

    def save(self, folder: Path, state: str) -> None:
        """Write it to a folder, whole or not at all. `state` names the content that it belongs to."""
        temporary = temporary_name(folder)
        with disk_errors(folder):
            try:
                temporary.mkdir(parents=True)
                if len(self.ids):
                    self._model.save(temporary, show_progress=False)
                write_json(
                    temporary / ABOUT,
                    {"state": state, "language": self.analyzer.language, "ids": self.ids.tolist()},
                    indent=None,
                )
                if folder.exists():  # in a draft, which nobody reads
                    shutil.rmtree(folder)
                temporary.rename(folder)
                sync_folder(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, state: str, analyzer: Analyzer) -> Bm25 | None:
        """What `save` wrote for the same content and language; None where it is missing, older or damaged."""
        try:
            about = read_json(folder / ABOUT, max_bytes=1 << 30)
            if about.get("state") != state or about.get("language") != analyzer.language:
                return None
            ids = np.asarray(about["ids"], dtype=np.int64)
            if not len(ids):
                return cls.build([], [], analyzer)
            model = import_bm25s().BM25.load(folder, mmap=True, show_progress=False)
            if ids.shape != (model.scores["num_docs"],) or not _is_whole(model):
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, json.JSONDecodeError):
            return None
        except InputError:
            if (folder / ABOUT).exists():
                raise
            return None
        return cls(model, ids, analyzer)


def _is_whole(model: Any) -> bool:
    """Whether every word has a number, and every number scores."""
    words = model.vocab_dict
    count = len(model.scores["indptr"]) - 1
    return isinstance(words, dict) and all(type(number) is int and 0 <= number <= count for number in words.values())
