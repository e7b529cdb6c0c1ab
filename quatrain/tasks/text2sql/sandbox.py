"""Runs SQL that a model wrote: read-only, one SELECT, limited in time, rows, bytes and memory.

Bad SQL gives a reason, no exception.
"""

from __future__ import annotations

import hashlib
import math
import re
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrain.tasks.text2sql.opening import connect

_COMMENT = re.compile(r"\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/", re.DOTALL)
_ALLOWED = frozenset(
    """abs avg ceil ceiling char coalesce concat concat_ws count cume_dist date datetime dense_rank exp first_value
    floor glob group_concat hex ifnull iif instr julianday lag last_value lead length like ln log log10
    log2 lower ltrim max min mod nth_value ntile nullif percent_rank pow power quote rank replace round
    row_number rtrim sign sqrt strftime string_agg substr substring sum time timediff total trim trunc typeof
    unicode unixepoch upper""".split()
)
_LENGTH = 2_000_000
_SQL_LENGTH = 20_000
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, _SQL_LENGTH), (sqlite3.SQLITE_LIMIT_VDBE_OP, 100_000),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100), (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 20),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100), (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
)  # fmt: skip
_STEPS = 1_000

# Functions whose time grows with the product of two lengths; SQLite checks the time only between steps.
_SLOW = re.compile(r"instr|replace|trim|like|glob", re.IGNORECASE)
_SEARCH = re.compile(r"instr|replace", re.IGNORECASE)
_SEARCH_LENGTH = 200_000
_TRIM = re.compile(r"trim", re.IGNORECASE)
_TRIM_SPACES = re.compile(r"trim\s*\(\s*[\w.\"`\[\]]+\s*\)", re.IGNORECASE)
_TRIM_LENGTH = 10_000
_SLOW_STEPS = 50

_ROW_BYTES = 256 * 1024 * 1024
"""Limit on the bytes of a row before its cells are cut."""

_HEAP = 512 * 1024 * 1024
"""Limit on the bytes that SQLite may allocate, for all connections of the process."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a statement: rows, or in `error` the reason for none. `seconds` is its time,
    `size` about how many bytes the rows take."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    truncated: bool = False
    error: str | None = None
    seconds: float = 0.0
    size: int = 0


class Connection:
    """A read-only connection to one database for untrusted SQL.

    Only one SELECT (or WITH ... SELECT, or VALUES) is run at a time, with a list of harmless functions; it is stopped
    after `seconds`, its answer is cut after `rows` rows or `size` bytes, and cells after `cell` characters. May be used
    from several threads.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        seconds: float = 2.0,
        rows: int = 1000,
        cell: int = 2000,
        size: int = 32_000_000,
    ):
        self.path = Path(path)
        self.seconds, self.rows, self.cell, self.size = seconds, rows, cell, size
        self.gold: dict[str, Result] = {}
        self.gold_size = 0
        self._lock = threading.Lock()
        self._deadline = math.inf
        self._denied = ""
        self._exact = False
        self._raw = connect(self.path)
        self._raw.execute(f"PRAGMA hard_heap_limit = {_HEAP}").fetchone()
        self._raw.text_factory = self._text
        for limit, value in _LIMITS:
            self._raw.setlimit(limit, value)
        self._raw.set_authorizer(self._authorize)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the connection cannot be used afterwards."""
        self._raw.close()

    def execute(self, sql: str, *, rows: int | None = None, exact: bool = False) -> Result:
        """Run one statement. Faults of any kind are in `Result.error`.

        Cells are for showing: long texts end in "…", blobs are "<3 bytes>". With `exact` they are for comparing:
        blobs are bytes, and what is cut has a digest of the whole.
        """
        start = time.perf_counter()
        refused = _refuse(sql)
        if refused:
            return Result(error=refused)
        with self._lock:
            self._denied, self._exact = "", exact
            self._deadline = start + self.seconds
            self._raw.set_progress_handler(self._late, _SLOW_STEPS if _SLOW.search(sql) else _STEPS)
            try:
                return self._run(sql, self.rows if rows is None else rows, start)
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError, TimeoutError) as error:
                return Result(error=self._reason(error), seconds=time.perf_counter() - start)
            finally:
                self._deadline = math.inf

    def _run(self, sql: str, limit: int, start: float) -> Result:
        length = _length(sql)
        self._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, length)
        cursor = self._raw.execute(sql)
        try:
            names = [str(entry[0]) for entry in cursor.description or ()]
            if len(names) * length > _ROW_BYTES:
                # Otherwise Python would copy every cell of the row before any is cut.
                cursor.close()
                self._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _ROW_BYTES // len(names))
                cursor = self._raw.execute(sql)
            rows: list[tuple[Any, ...]] = []
            size, truncated = 0, False
            for row in cursor:
                if len(rows) >= limit or size > self.size:
                    truncated = True
                    break
                cells = tuple(self._blob(cell) if isinstance(cell, bytes) else cell for cell in row)
                size += _size(cells)
                rows.append(cells)
                if self._late():
                    raise TimeoutError("interrupted")
        finally:
            cursor.close()
        columns = tuple(name if len(name) <= self.cell else name[: self.cell] + "…" for name in names)
        return Result(columns, tuple(rows), truncated, None, time.perf_counter() - start, size)

    def _text(self, data: bytes) -> str:
        """A text cell, cut before the next is read, so that the long cells of a row are never in memory together."""
        text = data[: 4 * self.cell + 4].decode("utf-8", "surrogateescape" if self._exact else "replace")
        if len(text) <= self.cell:
            return text
        return f"{text[: self.cell]}…{_digest(data)}" if self._exact else text[: self.cell] + "…"

    def _blob(self, data: bytes) -> bytes | str:
        if not self._exact:
            return f"<{len(data)} bytes>"
        return data if len(data) <= self.cell else data[: self.cell] + _digest(data).encode()

    def _late(self) -> int:
        return int(time.perf_counter() > self._deadline)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            if first and first.lower().startswith("sqlite_"):
                self._denied = f"the system table {first} is not open to questions"
                return sqlite3.SQLITE_DENY
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if second and second.lower() in _ALLOWED:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {second} is not allowed"
            return sqlite3.SQLITE_DENY
        self._denied = self._denied or "only reading with SELECT is allowed"
        return sqlite3.SQLITE_DENY

    def _reason(self, error: BaseException) -> str:
        text = str(error)
        if self._denied and ("not authorized" in text or "prohibited" in text):
            return self._denied
        if "interrupted" in text:
            return f"stopped after {self.seconds:g} s, the limit for one statement"
        if "one statement" in text:
            return "only one statement is run at a time"
        if isinstance(error, MemoryError) or "too big" in text:
            return "the answer is too large"
        return text or type(error).__name__


def _length(sql: str) -> int:
    """The longest value that a statement may handle: less where a function would take minutes over two long ones."""
    if len(_TRIM.findall(sql)) > len(_TRIM_SPACES.findall(sql)):
        return _TRIM_LENGTH
    return _SEARCH_LENGTH if _SEARCH.search(sql) else _LENGTH


def _size(row: tuple[Any, ...]) -> int:
    return 40 * len(row) + sum(len(cell) for cell in row if isinstance(cell, str | bytes))


def _digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _refuse(sql: str) -> str | None:
    if len(sql) > _SQL_LENGTH:
        return f"the statement is too large: {len(sql):,} characters; at most {_SQL_LENGTH:,} are run"
    rest = sql
    while comment := _COMMENT.match(rest):
        rest = rest[comment.end() :]
    if "\x00" in sql:
        return "the statement holds a NUL character"
    if not rest.strip("; \n\t"):
        return "there is no statement"
    word = re.match(r"\(*\s*([A-Za-z]+)", rest)
    if word is None or word.group(1).upper() not in ("SELECT", "WITH", "VALUES"):
        return "only reading with SELECT is allowed"
    return None
