"""An opened index: search with hits that are exact spans of their documents.

index = Index.open("indexes/notes")
for hit in index.search("How are embeddings pooled?", k=3):
    print(hit.name, hit.start, hit.end, hit.text)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean
from quatrain.retrieval.bm25 import Bm25
from quatrain.retrieval.encoders import Encoder, FileEncoder, encoder_modality, kind_of
from quatrain.retrieval.readers import TEXT, modality_of
from quatrain.retrieval.rerank import Reranker
from quatrain.retrieval.retrievers import RETRIEVERS, fused
from quatrain.retrieval.settings import IndexSettings, content_folder, index_folder, read_settings
from quatrain.retrieval.stores import Store, StoredChunk, StoredDocument, open_store
from quatrain.retrieval.words import Analyzer

BM25_FOLDER = "bm25"
MORE = 4
"""How many times `k` chunks are ranked, since the text of a chunk may occur in several files."""
RERANKED = 50
"""Chunks that a cross-encoder reads for one question."""
LONGEST_QUESTION = 20_000
"""The most characters of a question."""


@dataclass(frozen=True)
class Hit:
    """A chunk that was found: `document.text[start:end] == text`."""

    rank: int
    score: float
    text: str
    start: int
    end: int
    source: str
    """The file in the folder."""
    name: str
    """The file, and which document of it."""
    title: str
    path: tuple[str, ...]
    """The titles of the headings that hold the chunk."""
    document: int
    chunk: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The hit for programs."""
        return {
            **{"rank": self.rank, "score": self.score, "source": self.source, "name": self.name, "title": self.title},
            **{"path": list(self.path), "start": self.start, "end": self.end, "text": self.text},
            **{"document": self.document, "chunk": self.chunk, "metadata": dict(self.metadata)},
        }


class Index:
    """Documents that can be searched. Threads may share it."""

    def __init__(self, folder: Path, content: Path, settings: IndexSettings, store: Store, source: str = ""):
        self.folder, self.settings, self.store, self.source = folder, settings, store, source
        self.content = content
        self._bm25: Bm25 | None = None
        self._encoders: dict[str, Encoder] | None = None
        self._rerankers: dict[str, Reranker] = {}
        self._document = lru_cache(maxsize=256)(store.document)
        self._media: dict[str, set[int]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """The index of a folder, or of a name in `indexes/`. Raises InputError for one that cannot be read."""
        path = index_folder(folder)
        while True:
            settings, source = read_settings(path)
            content = content_folder(path)
            try:
                store = open_store(settings.store, content, settings.location, read_only=True)
            except InputError:
                if content_folder(path) == content:
                    raise
                continue  # A build has just ended, and removed what it has replaced.
            return cls(path, content, settings, store, source)

    def close(self) -> None:
        """Release the files."""
        self.store.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def bm25(self) -> Bm25:
        """BM25 of all chunks; counted anew where the saved one is of an older state."""
        if self._bm25 is None:
            ids = self.store.chunk_ids()
            analyzer, folder = Analyzer(self.settings.language), self.content / BM25_FOLDER
            found = Bm25.load(folder, state_of(ids), analyzer)
            self._bm25 = found or Bm25.build((text for _, text in self.texts()), ids, analyzer)
        return self._bm25

    def encoders(self) -> dict[str, Encoder]:
        """The encoders by the names of their spaces. Raises InputError where the index has no vectors of one."""
        if self._encoders is None:
            spaces, found = self.store.spaces(), dict[str, Encoder]()
            for space in self.settings.dense:
                encoder = kind_of(space).open_encoder(space, self.content, self.settings.language)
                if encoder is None and not self.content.is_dir():
                    raise InputError(self._replaced())
                if encoder is None or (space not in spaces and self.chunks_for(encoder)):
                    raise InputError(f"{self.folder} has no vectors of {space} yet: run quatrain index again")
                if self.store.get(f"encoder {space}") != encoder.fingerprint:
                    raise InputError(f"{space} has changed since the index was built: run quatrain index again")
                found[space] = encoder
            self._encoders = found
        return self._encoders

    def chunks_for(self, encoder: Encoder) -> set[int]:
        """The ids of the chunks that an encoder reads: of any document, or of those of its modality."""
        modality = getattr(encoder, "modality", TEXT)
        return set(self.store.chunk_ids()) if modality == TEXT else self._chunks_of(modality)

    def _chunks_of(self, modality: str) -> set[int]:
        """The ids of the chunks of documents that hold no text."""
        if modality not in self._media:
            ids = sorted(self.store.matching({"media": modality}))
            # A row of a table may have a column of that name: the file decides.
            self._media[modality] = {
                each.id
                for each in self.store.chunks(ids)
                if modality_of(self._document(each.document).source) == modality
            }
        return self._media[modality]

    def file_encoders(self) -> dict[str, FileEncoder]:
        """The encoders that read files without text by the names of their spaces, such as those of pictures."""
        spaces = [name for name in self.settings.dense if encoder_modality(name) != TEXT]
        found: Any = {space: self.encoders()[space] for space in spaces}
        return dict(found)

    def texts(self) -> Iterator[tuple[int, str]]:
        """The ids of all chunks, ascending, with the text that is searched: that of the chunk below its headings."""
        for document in self.store.documents():
            for chunk in self.store.chunks_of(document.id):
                yield chunk.id, searched_text(document, chunk)

    def texts_of(self, numbers: Sequence[int]) -> list[str]:
        """The texts that are searched of some chunks."""
        return [searched_text(self._document(chunk.document), chunk) for chunk in self.store.chunks(numbers)]

    def document(self, number: int) -> StoredDocument:
        """The document of a hit. Raises InputError for an unknown id."""
        try:
            return self._document(number)
        except KeyError:
            raise InputError(f"document {number}: unknown in {self.folder}") from None

    def retriever(self, name: str | None = None) -> str:
        """The name of a retriever; by default hybrid where the index has vectors. Raises InputError."""
        if name is None:
            return "hybrid" if self.settings.dense else "bm25"
        if name not in RETRIEVERS:
            raise InputError(
                f"retriever: {name!r}; must be one of {', '.join(RETRIEVERS)}{did_you_mean(name, list(RETRIEVERS))}"
            )
        if name != "bm25" and not self.settings.dense:
            raise InputError(
                f"retriever {name!r}: {self.folder} has no vectors; build it with --dense lsa, or a model's folder"
            )
        return name

    def rank(
        self,
        question: str,
        k: int,
        *,
        retriever: str | None = None,
        where: Mapping[str, Any] | None = None,
        passages: bool = False,
    ) -> list[tuple[int, float]]:
        """The ids of the `k` best chunks with their scores; `passages`: of texts alone. Raises InputError."""
        _check_question(question, k)
        allowed = None if not where else self.store.matching(where)
        if passages and (others := {each for one in self.file_encoders().values() for each in self.chunks_for(one)}):
            allowed = (set(self.store.chunk_ids()) if allowed is None else allowed) - others
        return RETRIEVERS[self.retriever(retriever)](self, question, k, allowed)

    def search(
        self,
        question: str,
        k: int = 5,
        *,
        retriever: str | None = None,
        rerank: str | None = None,
        where: Mapping[str, Any] | None = None,
        passages: bool = False,
    ) -> list[Hit]:
        """The `k` chunks that fit a question best, the best first; equal texts once.

        `retriever`: "bm25", "dense" or "hybrid". `rerank`: the folder of a cross-encoder, which reads the first
        `RERANKED` again. `where`: values that `source`, `title` or metadata must have. `passages`: texts alone, no
        pictures. Raises InputError.
        """
        most = max(k * MORE, RERANKED if rerank else 0)
        ranking = self.rank(question, most, retriever=retriever, where=where, passages=passages)
        if rerank is not None:
            numbers = [number for number, _ in ranking[:RERANKED]]
            ranking = self._reranker(rerank).ranked(question, numbers, self.texts_of(numbers))
        return self._hits(ranking, k)

    def pictures(
        self, text: str | None = None, k: int = 5, *, like: Any = None, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The `k` pictures nearest to a text, or to a picture: `like` is a path, bytes, an array or a Pillow image.

        The score is the cosine; with several encoders of pictures it is that of their fused rankings. Raises
        InputError for an index without vectors of pictures.
        """
        encoders = self.file_encoders()
        if not encoders:
            raise InputError(
                f"{self.folder} has no vectors of pictures; build it with --dense MODEL, a model of pictures and texts"
            )
        if (text is None) == (like is None):
            raise InputError("pictures are found by a text or by a picture; give one of them")
        if text is not None:
            _check_question(text, k)
        allowed = None if not where else self.store.matching(where)
        rankings = []
        for space, encoder in encoders.items():
            if like is not None:
                vector = encoder.encode_prepared([encoder.prepare(like)])[0]
            else:
                vector = encoder.encode([text or ""], is_query=True)[0]
            rankings.append(self.store.nearest(space, vector, k, allowed))
        return self._hits(rankings[0] if len(rankings) == 1 else fused(rankings)[:k], k)

    def _hits(self, ranking: Sequence[tuple[int, float]], k: int) -> list[Hit]:
        """The first `k` hits of a ranking; equal texts once."""
        hits: list[Hit] = []
        seen: set[tuple[str, str]] = set()
        try:
            chunks = self.store.chunks([number for number, _ in ranking])
            for chunk, (_, score) in zip(chunks, ranking, strict=True):
                document = self._document(chunk.document)
                text = document.text[chunk.start : chunk.end]
                # Two pictures may have one name in two folders.
                key = text, "" if modality_of(document.source) == TEXT else document.source
                if key not in seen:
                    seen.add(key)
                    hits.append(_hit(len(hits) + 1, score, text, chunk, document))
                if len(hits) == k:
                    break
        except KeyError as error:
            raise InputError(self._replaced()) from error
        return hits

    def _replaced(self) -> str:
        return f"{self.folder} has been built again since it was opened: open it again"

    def _reranker(self, name: str) -> Reranker:
        if name not in self._rerankers:
            self._rerankers[name] = Reranker(name)
        return self._rerankers[name]


def _check_question(question: str, k: int) -> None:
    if not question.strip() or len(question) > LONGEST_QUESTION:
        raise InputError(f"the question has {len(question):,} characters; must be 1 to {LONGEST_QUESTION:,}")
    if k < 1:
        raise InputError(f"k: {k}; must be at least 1")


def searched_text(document: StoredDocument, chunk: StoredChunk) -> str:
    """The text of a chunk below the titles that hold it, where it does not have them itself."""
    text = document.text[chunk.start : chunk.end]
    above = [title for title in dict.fromkeys((document.title, *chunk.path)) if title and title not in text]
    return "\n".join([*above, text])


def state_of(ids: Sequence[int]) -> str:
    """Names a set of chunks; ids are never used twice."""
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()[:32]


def _hit(rank: int, score: float, text: str, chunk: StoredChunk, document: StoredDocument) -> Hit:
    return Hit(
        rank, score, text, chunk.start, chunk.end, document.source, document.name, document.title, chunk.path,
        document.id, chunk.id, document.metadata,
    )  # fmt: skip
