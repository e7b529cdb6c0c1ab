"""Opens a user's SQLite file read-only, checks it and its journal files, and lists its tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.tasks.text2sql.naming import quote

LONGEST_TEXT = 10_000
"""Limit on the bytes of a text that are read; questions use values of up to 40 characters."""

NAMED = 20
"""Limit on the tables that an error lists."""

_HEADER = b"SQLite format 3\x00"
ERRORS = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""Errors of SQLite for a damaged file; Python cannot decode a message with a damaged name."""

_FATAL = ("disk image is malformed", "malformed database schema", "locked", "not a database", "disk I/O")
_JOURNAL = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"


def connect(path: str | Path) -> sqlite3.Connection:
    """A read-only connection to an existing SQLite file. Raises InputError saying why it cannot be read.

    Texts come as UTF-8 with U+FFFD for what is none, and cut after `LONGEST_TEXT` bytes.
    """
    path = user_path(path, "the database")
    remedy = "give the path of an SQLite 3 database file"
    try:
        if not path.exists():
            raise InputError(f"There is no database at {path}", [f"database: {path}; no such file; {remedy}"])
        if not path.is_file():
            raise InputError(f"{path} is not a database file", [f"database: {path}; a folder or a device; {remedy}"])
        with path.open("rb") as file:
            header = file.read(len(_HEADER))
    except OSError as error:
        raise InputError(
            f"Cannot read {path}", [f"database: {path}; {error.strerror}; check its permissions"]
        ) from error
    if not header:
        raise InputError(f"{path} is empty", [f"database: {path}; 0 bytes, so no tables; {remedy}"])
    if header != _HEADER:
        raise InputError(
            f"{path} is not an SQLite database",
            [
                f"database: {path}; begins with {header[:12]!r}, not with 'SQLite format 3': another kind of file, or "
                f"encrypted; {remedy}"
            ],
        )
    uri = path.resolve().as_uri()
    try:
        return _ready(uri + "?mode=ro")
    except sqlite3.OperationalError as error:
        # A database in WAL mode needs its -shm file, which cannot be made in a folder that is not writable.
        if "unable to open" not in str(error) and "readonly" not in str(error):
            raise InputError(f"Cannot read {path}", [explain(path, error)]) from error
    except ERRORS as error:
        raise InputError(f"Cannot read {path}", [explain(path, error)]) from error
    # `immutable` ignores the files beside the database. With pending changes, it would read an invalid state.
    if left := _unfinished(path):
        raise InputError(
            f"Cannot read {path}",
            [
                f"database: {path}; its last changes are still in {left.name}, which SQLite may not write back here; "
                f"copy {path.name} and {left.name} to a folder that you can write to, open the copy once with sqlite3, "
                "and give that"
            ],
        )
    try:
        return _ready(uri + "?mode=ro&immutable=1")
    except ERRORS as error:
        raise InputError(f"Cannot read {path}", [explain(path, error)]) from error


def _unfinished(path: Path) -> Path | None:
    """The write-ahead log or hot journal of a database, with changes that its file lacks or must undo."""
    for ending, begins in (("-wal", b""), ("-journal", _JOURNAL)):
        beside = path.resolve().with_name(path.resolve().name + ending)
        try:
            with beside.open("rb") as file:
                head = file.read(len(_JOURNAL))
        except FileNotFoundError:
            continue
        except OSError:
            return beside
        if head and head.startswith(begins):
            return beside
    return None


def _ready(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=2.0, check_same_thread=False)
    connection.text_factory = lambda data: data[:LONGEST_TEXT].decode("utf-8", "replace")
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except ERRORS:
        connection.close()
        raise
    return connection


def explain(path: Path, error: Exception) -> str:
    """One problem line for an SQLite error met while reading a database."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"database: {path}; locked by another program; close that program or copy the file"
    if "is malformed" in text or "malformed database" in text or "not a database" in text or "encrypted" in text:
        return f"database: {path}; damaged or encrypted ({text}); restore it from a copy, e.g. with sqlite3's .recover"
    return f"database: {path}; {text}; check the file with sqlite3's PRAGMA integrity_check"


def table_names(connection: sqlite3.Connection, *, virtual: bool = False) -> list[str]:
    """The tables of a database in the order of their making, without the system's own; or the virtual ones alone.

    Those that keep the content of a virtual table are left out.
    """
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
        f"AND coalesce(rootpage, 0) {'=' if virtual else '!='} 0 ORDER BY rowid"
    )
    names = [row[0] for row in rows]
    if virtual or sqlite3.sqlite_version_info < (3, 37):
        return names
    try:
        hidden = {row[1] for row in connection.execute("PRAGMA table_list") if row[2] == "shadow"}
    except ERRORS:  # a view or a virtual table that SQLite cannot resolve
        return names
    return [name for name in names if name not in hidden]


def columns_of(connection: sqlite3.Connection, table: str) -> list[tuple[str, str, int]]:
    """Name, declared type and place in the primary key of each column, those that SQLite computes among them."""
    rows = connection.execute(f"PRAGMA table_xinfo({quote(table)})")
    return [(row[1], row[2] or "", row[5]) for row in rows if row[6] != 1]  # 1: hidden, of a virtual table


def fatal(error: Exception) -> bool:
    """Whether an error affects the whole file, not one table."""
    return any(word in str(error) for word in _FATAL)


def few(problems: Iterable[str]) -> list[str]:
    """The first problems, and how many more there are."""
    lines = list(problems)
    return lines if len(lines) <= NAMED else [*lines[:NAMED], f"… and {len(lines) - NAMED:,} more"]
