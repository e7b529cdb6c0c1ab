"""A store on a Qdrant server, for collections that outgrow one machine; the same client has a local mode in memory.

Chunks are points of one collection per encoder, documents and sources points of their own. The index's folder keeps
settings, BM25 and fitted encoders. https://qdrant.tech/documentation/
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.libraries import require
from quatrain.retrieval.stores import Batch, Counts, SourceState, StoredChunk, StoredDocument, Vectors

PAGE = 256
"""Points of one request."""
EMPTY = [1.0]
"""The vector of a point that needs none."""
_LOCAL: dict[str, Any] = {}
"""Clients of the local mode by their names: a process has its data in memory."""


def open_store(folder: Path, location: str | None, *, read_only: bool) -> QdrantStore:
    """The store at "http://HOST:6333#NAME", or "memory#NAME" in this process. Raises InputError."""
    with require("the store qdrant", "qdrant-client", "qdrant"):
        import qdrant_client
    address, _, name = (location or "").partition("#")
    if not address or not name:
        raise InputError(f"location: {location!r}; give the address and a name, such as http://localhost:6333#notes")
    if address == "memory":
        client = _LOCAL.setdefault(name, qdrant_client.QdrantClient(":memory:"))
    else:
        import os

        client = qdrant_client.QdrantClient(url=address, api_key=os.environ.get("QDRANT_API_KEY"))
    return QdrantStore(client, name, is_shared=address == "memory")


class QdrantStore:
    """Documents, chunks and vectors in the collections NAME-sources, NAME-documents, NAME-chunks and NAME-space-…"""

    def __init__(self, client: Any, name: str, *, is_shared: bool = False):
        """Raises QuatrainError where no server answers."""
        from qdrant_client import models

        self.client, self.name, self.models, self.is_shared = client, name, models, is_shared
        self._lock = threading.RLock()
        try:
            for part in ("sources", "documents", "chunks"):
                self._collection(part, 1)
        except Exception as error:
            raise QuatrainError(f"Qdrant cannot be reached: {error}. Start it, or use store = sqlite") from error

    def _collection(self, part: str, size: int) -> str:
        name, models = f"{self.name}-{part}", self.models
        if not self.client.collection_exists(name):
            distance = models.VectorParams(size=size, distance=models.Distance.DOT)
            self.client.create_collection(name, vectors_config=distance)
        return name

    def _space(self, space: str) -> str:
        return f"space-{uuid.uuid5(uuid.NAMESPACE_URL, space).hex[:12]}"

    def _put(self, part: str, points: Sequence[tuple[Any, Sequence[float], dict[str, Any]]]) -> None:
        made = [
            self.models.PointStruct(id=number, vector=list(vector), payload=load) for number, vector, load in points
        ]
        for start in range(0, len(made), PAGE):
            self.client.upsert(f"{self.name}-{part}", made[start : start + PAGE], wait=True)

    def _all(self, part: str, where: Any = None, *, vectors: bool = False) -> Iterator[Any]:
        """The points of a collection, page by page, in ascending order of their ids."""
        place = None
        while True:
            points, place = self.client.scroll(
                f"{self.name}-{part}", scroll_filter=where, limit=PAGE, offset=place, with_vectors=vectors
            )
            yield from points
            if place is None:
                return

    def _equal(self, **values: Any) -> Any:
        match = self.models.MatchValue
        return self.models.Filter(
            must=[self.models.FieldCondition(key=key, match=match(value=value)) for key, value in values.items()]
        )

    def _next(self, what: str) -> int:
        return int(self.get(f"next {what}") or 1)

    def sources(self) -> dict[str, SourceState]:
        found = {each.payload["name"]: each.payload for each in self._all("sources") if "name" in each.payload}
        return {
            name: SourceState(found[name]["digest"], found[name]["documents"], found[name]["complete"])
            for name in sorted(found)
        }

    def _write_source(self, source: str, digest: str, documents: int, complete: bool) -> None:
        load = {"name": source, "digest": digest, "documents": documents, "complete": complete}
        self._put("sources", [(str(uuid.uuid5(uuid.NAMESPACE_URL, f"source {source}")), EMPTY, load)])

    def begin(self, source: str, digest: str) -> None:
        with self._lock:
            self.remove(source)
            self._write_source(source, digest, 0, False)

    def add(self, source: str, batch: Batch) -> None:
        # A source counts its documents last: what a kill leaves beyond the count is written over by the next call.
        with self._lock:
            state = self.sources()[source]
            self._drop_after(source, state.documents)
            number, chunk_number = self._next("document"), self._next("chunk")
            documents, chunks = [], []
            for place, (document, spans) in enumerate(batch):
                documents.append(
                    (
                        number,
                        EMPTY,
                        {
                            **{"source": source, "part": document.part, "title": document.title, "text": document.text},
                            **{"place": state.documents + place, "metadata": dict(document.metadata)},
                        },
                    )
                )
                for span in spans:
                    load = {"document": number, "source": source, "start": span.start, "stop": span.end}
                    load |= {"path": json.dumps(span.path), "place": state.documents + place}
                    chunks.append((chunk_number, EMPTY, load))
                    chunk_number += 1
                number += 1
            self.set("next document", str(number))
            self.set("next chunk", str(chunk_number))
            self._put("documents", documents)
            self._put("chunks", chunks)
            self._write_source(source, state.digest, state.documents + len(documents), False)

    def _drop_after(self, source: str, documents: int) -> None:
        """Remove what belongs to no finished batch."""
        beyond = self.models.FieldCondition(key="place", range=self.models.Range(gte=documents))
        where = self._equal(source=source)
        where.must.append(beyond)
        for part in ("documents", "chunks"):
            self.client.delete(f"{self.name}-{part}", self.models.FilterSelector(filter=where), wait=True)

    def finish(self, source: str) -> None:
        with self._lock:
            state = self.sources()[source]
            self._write_source(source, state.digest, state.documents, True)

    def remove(self, source: str) -> None:
        with self._lock:
            numbers = [each.id for each in self._all("chunks", self._equal(source=source))]
            for space in self.spaces():
                for start in range(0, len(numbers), PAGE):
                    points = self.models.PointIdsList(points=numbers[start : start + PAGE])
                    self.client.delete(f"{self.name}-{self._space(space)}", points, wait=True)
            for part in ("documents", "chunks"):
                selected = self.models.FilterSelector(filter=self._equal(source=source))
                self.client.delete(f"{self.name}-{part}", selected, wait=True)
            selected = self.models.FilterSelector(filter=self._equal(name=source))
            self.client.delete(f"{self.name}-sources", selected, wait=True)

    def document(self, number: int) -> StoredDocument:
        points = self.client.retrieve(f"{self.name}-documents", [number])
        if not points:
            raise KeyError(number)
        return _document(points[0])

    def documents(self) -> Iterator[StoredDocument]:
        yield from map(_document, self._all("documents"))

    def chunks(self, numbers: Sequence[int]) -> list[StoredChunk]:
        found: dict[int, StoredChunk] = {}
        for start in range(0, len(numbers), PAGE):
            points = self.client.retrieve(f"{self.name}-chunks", list(numbers[start : start + PAGE]))
            found |= {int(each.id): _chunk(each) for each in points}
        return [found[number] for number in numbers]

    def chunks_of(self, document: int) -> list[StoredChunk]:
        return sorted(map(_chunk, self._all("chunks", self._equal(document=document))), key=lambda each: each.id)

    def chunk_ids(self) -> list[int]:
        return sorted(int(each.id) for each in self._all("chunks"))

    def without_vector(self, space: str) -> list[int]:
        part = self._space(space)
        if not self.client.collection_exists(f"{self.name}-{part}"):
            return self.chunk_ids()
        have = {int(each.id) for each in self._all(part)}
        return [number for number in self.chunk_ids() if number not in have]

    def set_vectors(self, space: str, numbers: Sequence[int], vectors: Vectors) -> None:
        if not len(vectors):
            return
        self._collection(self._space(space), vectors.shape[1])
        known = set(self.spaces()) | {space}
        self.set("spaces", json.dumps(sorted(known)))
        self._put(
            self._space(space), [(number, vector.tolist(), {}) for number, vector in zip(numbers, vectors, strict=True)]
        )

    def clear_vectors(self, space: str) -> None:
        self.client.delete_collection(f"{self.name}-{self._space(space)}")
        self.set("spaces", json.dumps([each for each in self.spaces() if each != space]))

    def spaces(self) -> list[str]:
        found: list[str] = json.loads(self.get("spaces") or "[]")
        return found

    def nearest(self, space: str, vector: Vectors, k: int, allowed: set[int] | None = None) -> list[tuple[int, float]]:
        part = f"{self.name}-{self._space(space)}"
        if not self.client.collection_exists(part):
            return []
        models = self.models
        where = None if allowed is None else models.Filter(must=[models.HasIdCondition(has_id=sorted(allowed))])
        found = self.client.query_points(part, query=np.asarray(vector).tolist(), limit=k, query_filter=where).points
        return [(int(each.id), float(each.score)) for each in found]

    def vectors(self, space: str, numbers: Sequence[int]) -> Vectors:
        points = self.client.retrieve(f"{self.name}-{self._space(space)}", list(numbers), with_vectors=True)
        return np.array([each.vector for each in points], dtype=np.float32)

    def matching(self, where: Mapping[str, Any]) -> set[int]:
        own = {key if key in ("source", "part", "title") else f"metadata.{key}": value for key, value in where.items()}
        return {
            each.id for found in self._all("documents", self._equal(**own)) for each in self.chunks_of(int(found.id))
        }

    def get(self, key: str) -> str | None:
        points = self.client.retrieve(f"{self.name}-sources", [_note(key)])
        return points[0].payload["value"] if points else None

    def set(self, key: str, value: str) -> None:
        self._put("sources", [(_note(key), EMPTY, {"note": key, "value": value})])

    def counts(self) -> Counts:
        documents, chunks = (self.client.count(f"{self.name}-{part}").count for part in ("documents", "chunks"))
        vectors = sum(self.client.count(f"{self.name}-{self._space(space)}").count for space in self.spaces())
        return Counts(len(self.sources()), documents, chunks, vectors)

    def close(self) -> None:
        if not self.is_shared:
            self.client.close()


def _note(key: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"note {key}"))


def _document(point: Any) -> StoredDocument:
    load = point.payload
    return StoredDocument(
        int(point.id), load["source"], load["part"], load["title"], load["text"], load.get("metadata") or {}
    )


def _chunk(point: Any) -> StoredChunk:
    load = point.payload
    return StoredChunk(int(point.id), load["document"], load["start"], load["stop"], tuple(json.loads(load["path"])))
