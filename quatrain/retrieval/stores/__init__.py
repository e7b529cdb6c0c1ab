"""Where documents, chunks and vectors are kept. `sqlite` is a file with nothing to start; `qdrant` is for a server.

A source is a file of the folder. Its documents are written in parts, each atomically, and it is `complete` after the
last: what a kill leaves is continued where it ended.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quatrain.core.errors import InputError
from quatrain.retrieval.documents import Chunk, IndexDocument

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class SourceState:
    """What the store has of a source: the digest of its content and settings, and how many documents so far."""

    digest: str
    documents: int
    complete: bool


@dataclass(frozen=True)
class StoredDocument:
    """A document as the store keeps it. `text[start:end]` of a chunk is the chunk."""

    id: int
    source: str
    part: str
    title: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source, and which document of it."""
        return f"{self.source} {self.part}".rstrip()


@dataclass(frozen=True)
class StoredChunk:
    """A span of a document; `path` are the titles of the headings that hold it."""

    id: int
    document: int
    start: int
    end: int
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """How much a store holds."""

    sources: int
    documents: int
    chunks: int
    vectors: int


Batch = Sequence[tuple[IndexDocument, Sequence[Chunk]]]
"""Documents with their chunks."""


class Store(Protocol):
    """What an index asks of its store. Ids of chunks grow in the order in which they are added."""

    def sources(self) -> dict[str, SourceState]:
        """What is there of each source."""

    def begin(self, source: str, digest: str) -> None:
        """Forget what is there of a source, and start it anew."""

    def add(self, source: str, batch: Batch) -> None:
        """Add documents of a source with their chunks, all or none."""

    def finish(self, source: str) -> None:
        """Mark a source as complete."""

    def remove(self, source: str) -> None:
        """Forget a source."""

    def document(self, number: int) -> StoredDocument:
        """The document of an id. Raises KeyError."""

    def documents(self) -> Iterator[StoredDocument]:
        """All documents, by their ids."""

    def chunks(self, numbers: Sequence[int]) -> list[StoredChunk]:
        """The chunks of ids, in their order. Raises KeyError."""

    def chunks_of(self, document: int) -> list[StoredChunk]:
        """The chunks of a document, in their order."""

    def chunk_ids(self) -> list[int]:
        """The ids of all chunks, in ascending order."""

    def without_vector(self, space: str) -> list[int]:
        """The ids of chunks that have no vector in a space (the vectors of one encoder), in ascending order."""

    def set_vectors(self, space: str, numbers: Sequence[int], vectors: Vectors) -> None:
        """Give chunks their vectors (N, D) of length 1 in a space, all or none."""

    def clear_vectors(self, space: str) -> None:
        """Forget the vectors of a space."""

    def spaces(self) -> list[str]:
        """The spaces that have vectors."""

    def nearest(self, space: str, vector: Vectors, k: int, allowed: set[int] | None = None) -> list[tuple[int, float]]:
        """The ids of the `k` chunks with the largest cosine to a vector (D,) of length 1, and the cosines."""

    def vectors(self, space: str, numbers: Sequence[int]) -> Vectors:
        """The vectors (N, D) of chunks that have one, in no order."""

    def matching(self, where: Mapping[str, Any]) -> set[int]:
        """The ids of chunks of documents whose metadata, `source`, `part` or `title` have these values."""

    def get(self, key: str) -> str | None:
        """A note that was kept."""

    def set(self, key: str, value: str) -> None:
        """Keep a note."""

    def counts(self) -> Counts:
        """How much there is."""

    def close(self) -> None:
        """Release files and connections."""


class OpenStore(Protocol):
    """The `open_store` function of a module."""

    def __call__(self, folder: Path, location: str | None, *, read_only: bool) -> Store:
        """The store of an index's folder; `location` is the address of a server, if the store has one."""


@cache
def stores() -> dict[str, OpenStore]:
    """The kinds of stores, by the name of their module."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.__name__.rpartition(".")[2]: module.open_store for module in modules}


def open_store(kind: str, folder: Path, location: str | None = None, *, read_only: bool = False) -> Store:
    """The store of an index. Raises InputError for an unknown kind, or a store that cannot be opened."""
    if kind not in (known := stores()):
        raise InputError(f"store: {kind!r}; must be one of {', '.join(known)}")
    return known[kind](folder, location, read_only=read_only)
