"""The embedded store: one SQLite file in the folder of the index; vectors are compared one by one, exactly.

100,000 vectors of 384 numbers take 150 MB and are compared in some 20 ms. Larger collections belong to a server.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from quatrain.core.atomic import free_bytes
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.wording import format_bytes
from quatrain.retrieval.stores import Batch, Counts, SourceState, StoredChunk, StoredDocument, Vectors

FILE = "documents.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sources (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, complete INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL REFERENCES sources ON DELETE CASCADE,
    part TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, path TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (
    space TEXT NOT NULL, chunk INTEGER NOT NULL REFERENCES chunks ON DELETE CASCADE, vector BLOB NOT NULL,
    PRIMARY KEY (space, chunk)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS documents_of_source ON documents (source);
CREATE INDEX IF NOT EXISTS chunks_of_document ON chunks (document);
CREATE INDEX IF NOT EXISTS vectors_of_chunk ON vectors (chunk);
"""
_COLUMNS = ("source", "part", "title")
_CHUNK = "id, document, start, stop, path"
_DOCUMENT = "d.id, s.name, d.part, d.title, d.text, d.metadata FROM documents d JOIN sources s ON s.id = d.source"


def open_store(folder: Path, location: str | None, *, read_only: bool) -> SqliteStore:
    """The store in a folder. Raises InputError where it cannot be read."""
    return SqliteStore(folder / FILE, read_only=read_only)


class SqliteStore:
    """Documents, chunks and vectors in one file. Threads may share it; a process writes, any number read."""

    def __init__(self, path: Path, *, read_only: bool = False):
        """Raises InputError for a file that is missing (`read_only`) or no store of ours."""
        self.path, self._read_only = path, read_only
        self._lock = threading.RLock()
        self._matrices: dict[str, tuple[np.ndarray, Vectors]] = {}
        if read_only and not path.is_file():
            raise InputError(f"{path} is missing: build the index again with quatrain index")
        mode = "ro" if read_only else "rwc"
        address = f"file:{quote(str(path.resolve()))}?mode={mode}"
        try:
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA foreign_keys = ON")
            if not read_only:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.executescript(_SCHEMA)
            self._connection.execute("SELECT count(*) FROM notes")
        except sqlite3.Error as error:
            raise InputError(
                f"{path} cannot be opened: {error}. Delete the folder of the index and build it again"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Raises QuatrainError where the disk is full."""
        with self._lock:
            self._matrices.clear()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                free = free_bytes(self.path)
                room = "" if free is None else f" ({format_bytes(free)} free on that disk)"
                raise QuatrainError(
                    f"cannot write {self.path}: {error}{room}. Run the same command again: what was finished is kept."
                ) from error

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def sources(self) -> dict[str, SourceState]:
        query = (
            "SELECT s.name, s.digest, count(d.id), s.complete FROM sources s LEFT JOIN documents d ON d.source = s.id "
            "GROUP BY s.id ORDER BY s.name"
        )
        return {name: SourceState(digest, count, bool(complete)) for name, digest, count, complete in self._rows(query)}

    def begin(self, source: str, digest: str) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM sources WHERE name = ?", (source,))
            connection.execute("INSERT INTO sources (name, digest) VALUES (?, ?)", (source, digest))

    def add(self, source: str, batch: Batch) -> None:
        with self._writing() as connection:
            (number,) = connection.execute("SELECT id FROM sources WHERE name = ?", (source,)).fetchone()
            for document, chunks in batch:
                about = json.dumps(dict(document.metadata), ensure_ascii=True, default=str)
                row = connection.execute(
                    "INSERT INTO documents (source, part, title, text, metadata) VALUES (?, ?, ?, ?, ?)",
                    (number, document.part, document.title, document.text, about),
                )
                connection.executemany(
                    "INSERT INTO chunks (document, start, stop, path) VALUES (?, ?, ?, ?)",
                    ((row.lastrowid, each.start, each.end, json.dumps(each.path)) for each in chunks),
                )

    def finish(self, source: str) -> None:
        with self._writing() as connection:
            connection.execute("UPDATE sources SET complete = 1 WHERE name = ?", (source,))

    def remove(self, source: str) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM sources WHERE name = ?", (source,))

    def document(self, number: int) -> StoredDocument:
        rows = self._rows(f"SELECT {_DOCUMENT} WHERE d.id = ?", (number,))
        if not rows:
            raise KeyError(number)
        return _document(rows[0])

    def documents(self) -> Iterator[StoredDocument]:
        last = 0
        while rows := self._rows(f"SELECT {_DOCUMENT} WHERE d.id > ? ORDER BY d.id LIMIT 256", (last,)):
            yield from map(_document, rows)
            last = rows[-1][0]

    def chunks(self, numbers: Sequence[int]) -> list[StoredChunk]:
        found: dict[int, StoredChunk] = {}
        for start in range(0, len(numbers), 500):
            part = list(numbers[start : start + 500])
            marks = ", ".join("?" * len(part))
            rows = self._rows(f"SELECT {_CHUNK} FROM chunks WHERE id IN ({marks})", part)
            found |= {row[0]: _chunk(row) for row in rows}
        return [found[number] for number in numbers]

    def chunks_of(self, document: int) -> list[StoredChunk]:
        return [_chunk(row) for row in self._rows(f"SELECT {_CHUNK} FROM chunks WHERE document = ? ORDER BY id",
                                                  (document,))]  # fmt: skip

    def chunk_ids(self) -> list[int]:
        return [number for (number,) in self._rows("SELECT id FROM chunks ORDER BY id")]

    def without_vector(self, space: str) -> list[int]:
        query = (
            "SELECT id FROM chunks c WHERE NOT EXISTS (SELECT 1 FROM vectors v WHERE v.space = ? AND v.chunk = c.id) "
            "ORDER BY id"
        )
        return [number for (number,) in self._rows(query, (space,))]

    def set_vectors(self, space: str, numbers: Sequence[int], vectors: Vectors) -> None:
        rows = (
            (space, number, np.ascontiguousarray(vector, dtype="<f4").tobytes())
            for number, vector in zip(numbers, vectors, strict=True)
        )
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO vectors (space, chunk, vector) VALUES (?, ?, ?)", rows)

    def clear_vectors(self, space: str) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM vectors WHERE space = ?", (space,))

    def spaces(self) -> list[str]:
        return [space for (space,) in self._rows("SELECT DISTINCT space FROM vectors ORDER BY space")]

    def _vectors(self, space: str) -> tuple[np.ndarray, Vectors]:
        """The ids of all chunks with a vector, and the matrix (N, D), read once."""
        with self._lock:
            if space not in self._matrices:
                rows = self._rows("SELECT chunk, vector FROM vectors WHERE space = ? ORDER BY chunk", (space,))
                numbers = np.array([number for number, _ in rows], dtype=np.int64)
                width = len(rows[0][1]) // 4 if rows else 0
                matrix = np.frombuffer(b"".join(blob for _, blob in rows), dtype="<f4").reshape(len(rows), width)
                self._matrices[space] = numbers, matrix
            return self._matrices[space]

    def nearest(self, space: str, vector: Vectors, k: int, allowed: set[int] | None = None) -> list[tuple[int, float]]:
        numbers, matrix = self._vectors(space)
        if not len(numbers):
            return []
        scores = matrix @ np.asarray(vector, dtype=np.float32)
        if allowed is not None:
            scores = np.where(np.isin(numbers, list(allowed)), scores, -np.inf)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(numbers[place]), float(scores[place])) for place in order if np.isfinite(scores[place])]

    def vectors(self, space: str, numbers: Sequence[int]) -> Vectors:
        ids, matrix = self._vectors(space)
        found: Vectors = matrix[np.isin(ids, list(numbers))]
        return found

    def matching(self, where: Mapping[str, Any]) -> set[int]:
        terms, values = [], []
        for key, value in where.items():
            if key in _COLUMNS:
                terms.append("s.name = ?" if key == "source" else f"d.{key} = ?")
                values.append(value)
            else:
                terms.append("json_extract(d.metadata, ?) = ?")
                escaped = key.replace('"', '""')
                values += [f'$."{escaped}"', value]
        query = "SELECT c.id FROM chunks c JOIN documents d ON d.id = c.document JOIN sources s ON s.id = d.source"
        return {number for (number,) in self._rows(f"{query} WHERE {' AND '.join(terms) or '1'}", values)}

    def get(self, key: str) -> str | None:
        rows = self._rows("SELECT value FROM notes WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def set(self, key: str, value: str) -> None:
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO notes (key, value) VALUES (?, ?)", (key, value))

    def counts(self) -> Counts:
        parts = (f"(SELECT count(*) FROM {table})" for table in ("sources", "documents", "chunks", "vectors"))
        (row,) = self._rows(f"SELECT {', '.join(parts)}")
        return Counts(*row)

    def close(self) -> None:
        with self._lock:
            if not self._read_only:
                # One file, which a folder without write permission can be read from; refused while others read it.
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()


def _document(row: Sequence[Any]) -> StoredDocument:
    return StoredDocument(row[0], row[1], row[2], row[3], row[4], json.loads(row[5]))


def _chunk(row: Sequence[Any]) -> StoredChunk:
    return StoredChunk(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])))
