"""Many SQLite databases by their names, as sets of questions ask them: Spider (Yu et al. 2018, arXiv 1809.08887).

They come as a folder (`NAME.sqlite`, or `NAME/NAME.sqlite` as Spider has them), a .zip of such files, a single file, a
name of the catalog, or several of these joined by " + ".
"""

from __future__ import annotations

import difflib
import hashlib
import lzma
import shutil
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.core.reading import sha256_of, user_path
from quatrain.data import catalog
from quatrain.data.sources import source_names
from quatrain.tasks.text2sql.naming import quote
from quatrain.tasks.text2sql.opening import ERRORS, columns_of, connect, explain, table_names
from quatrain.tasks.text2sql.sandbox import Connection

SUFFIXES = (".sqlite", ".sqlite3", ".db")
"""Endings of database files in a folder or a zip file."""

OPEN = 64
"""Limit on open connections."""

MAX_SIZE = 8 * 1024**3
"""Limit on the bytes of a database that is extracted from a zip file."""


@dataclass(frozen=True)
class Packed:
    """A database in a zip file, and the file that it is unpacked to at the first use."""

    archive: Path
    member: str
    target: Path

    def unpacked(self) -> Path:
        """Its file, in the cache."""
        if self.target.exists():
            return self.target
        try:
            with zipfile.ZipFile(self.archive) as archive:
                size = archive.getinfo(self.member).file_size
                if size > MAX_SIZE:
                    raise InputError(
                        f"{self.archive}: {self.member} has {size:,} bytes unpacked; at most {MAX_SIZE:,} are; unpack "
                        "it yourself and name the folder"
                    )
                with archive.open(self.member) as packed, atomic_write(self.target, "wb") as file:
                    shutil.copyfileobj(packed, file)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise InputError(f"{self.archive}: {self.member} is damaged ({error}); get the file again") from error
        except (RuntimeError, NotImplementedError) as error:  # a password, or a compression that Python lacks
            raise InputError(f"{self.archive}: {self.member} cannot be unpacked: {error}") from error
        return self.target


class Databases:
    """SQLite files by their names, which are those of the files without their ending, in any case.

    Raises InputError for a source that is not there or holds no database.
    """

    def __init__(self, source: str | Path):
        self.source = str(source)
        self._files: dict[str, Path | Packed] = {}
        self._twice: dict[str, list[str]] = {}
        for name in source_names(source):
            files, duplicates = _files_of(name)
            self._files |= files
            self._twice |= duplicates
        self._schemas: dict[str, str] = {}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return self._key(name) is not None

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    @property
    def fingerprint(self) -> str:
        """Identifies the content for caches: the name, size and modification time of each file."""
        known = []
        for name, location in sorted(self._files.items()):
            file = location if isinstance(location, Path) else location.target.parent
            size = f"{file.stat().st_size} {file.stat().st_mtime_ns}" if isinstance(location, Path) else file.name
            known.append(f"{name} {size}")
        return hashlib.sha256("\n".join(known).encode()).hexdigest()

    def path(self, name: str) -> Path:
        """The file of a database; out of a zip file it is put into the cache. Raises InputError where there is none."""
        key = self._key(name)
        if key is None:
            near = difflib.get_close_matches(name.lower(), self._files, 1)
            hint = f"; did you mean {near[0]}?" if near else f", which has {len(self._files)} databases"
            raise InputError(f"there is no database {name or '(without a name)'} in {self.source}{hint}")
        if key in self._twice:
            raise InputError(
                f"{self.source} has several databases called {name}; keep one of them, or name its folder",
                self._twice[key][:8],
            )
        location = self._files[key]
        return location if isinstance(location, Path) else location.unpacked()

    def schema(self, name: str) -> str:
        """`schema_text` of a database, read once."""
        if name not in self._schemas:
            self._schemas[name] = schema_text(self.path(name))
        return self._schemas[name]

    def connection(self, name: str) -> Connection:
        """A connection for untrusted SQL, opened once and cached."""
        if name not in self._connections:
            if len(self._connections) >= OPEN:
                self._connections.pop(next(iter(self._connections))).close()
            self._connections[name] = Connection(self.path(name))
        return self._connections[name]

    def _key(self, name: str) -> str | None:
        if not name:
            return next(iter(self._files)) if len(self._files) == 1 else None
        return name.lower() if name.lower() in self._files else None


def tables_of(path: Path) -> list[tuple[str, list[str]]]:
    """The tables of a database with their columns, empty tables included."""
    with closing(connect(path)) as connection:
        try:
            names = table_names(connection)
            return [(name, [column for column, _, _ in columns_of(connection, name)]) for name in names]
        except ERRORS as error:
            raise InputError(f"Cannot read {path}", [explain(path, error)]) from error


def schema_text(path: Path) -> str:
    """The schema as a model reads it: a line for each table with its columns, a line for each foreign key.

    Names are in small letters, which SQLite takes for the same, and quoted where SQL wants it. Raises InputError for a
    file that is no database, or has no tables.
    """
    with closing(connect(path)) as connection:
        try:
            names = table_names(connection)
            lines, keys = [], []
            for name in names:
                columns = [column for column, _, _ in columns_of(connection, name)]
                lines.append(f"{_small(name)}: {', '.join(_small(column) for column in columns)}")
                for row in connection.execute(f"PRAGMA foreign_key_list({quote(name)})"):
                    _, _, parent, column, target, *_ = row
                    if target is not None:
                        keys.append(f"{_small(name)}.{_small(column)} = {_small(parent)}.{_small(target)}")
        except ERRORS as error:
            raise InputError(f"Cannot read {path}", [explain(path, error)]) from error
    if not names:
        raise InputError(f"{path} has no tables", [f"database: {path}; no tables; give a database with tables"])
    return "\n".join([*lines, *dict.fromkeys(keys)])


def _small(name: str) -> str:
    return quote(name.lower())


def _files_of(source: str) -> tuple[dict[str, Path | Packed], dict[str, list[str]]]:
    """The databases of one source by their names in small letters, and the places of names that several have."""
    entry = catalog.find(source)
    path = catalog.fetch(entry) if entry is not None else user_path(source, "the databases")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        return _by_name([(PurePosixPath(file.as_posix()), file) for file in files], path)
    if path.is_file() and zipfile.is_zipfile(path):
        # The folder name depends on the content of the zip file.
        folder = catalog.cache_folder() / "databases" / sha256_of(path)[:16]
        try:
            with zipfile.ZipFile(path) as archive:
                members = [PurePosixPath(name) for name in archive.namelist()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InputError(f"{path} is a damaged zip file ({error}); get it again") from error
        packed = [each for each in members if each.suffix.lower() in SUFFIXES and each.name[:2] != "._"]
        return _by_name([(each, Packed(path, str(each), folder / each.name)) for each in packed], path)
    connect(path).close()  # raises the error for a file that is no database
    return {path.stem.lower(): path}, {}


def _by_name(
    found: list[tuple[PurePosixPath, Any]], source: Path
) -> tuple[dict[str, Path | Packed], dict[str, list[str]]]:
    """Databases by their names. Of several with one name, that in a folder of this name is it, as Spider has them."""
    if not found:
        raise InputError(f"{source} has no database: files with the endings {' '.join(SUFFIXES)} are read")
    named: dict[str, list[tuple[PurePosixPath, Any]]] = {}
    for place, file in found:
        named.setdefault(place.stem.lower(), []).append((place, file))
    files, duplicates = {}, {}
    for name, each in named.items():
        preferred = [(place, file) for place, file in each if place.parent.name.lower() == name]
        chosen = preferred if len(preferred) == 1 else each
        files[name] = chosen[-1][1]
        if len(chosen) > 1:
            duplicates[name] = [str(place) for place, _ in chosen]
    return files, duplicates
