"""Running SQL that a model wrote: read-only, one SELECT, limited in time, rows and size.

Bad SQL gives a reason, no exception.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrain.applications.text2sql.introspection import connect

_COMMENT = re.compile(r"\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/", re.DOTALL)
_ALLOWED = frozenset(
    """abs avg ceil ceiling char coalesce concat concat_ws count cume_dist date datetime dense_rank exp first_value
    floor glob group_concat hex ifnull iif instr julianday lag last_value lead length like ln log log10
    log2 lower ltrim max min mod nth_value ntile nullif percent_rank pow power quote rank replace round
    row_number rtrim sign sqrt strftime string_agg substr substring sum time timediff total trim trunc typeof
    unicode unixepoch upper""".split()
)
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, 2_000_000), (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 20_000),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100), (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 20),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100), (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
)  # fmt: skip
_STEPS = 5_000


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave: rows, or in `error` the reason why there are none. `seconds` is the time it took."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    truncated: bool = False
    error: str | None = None
    seconds: float = 0.0


class Connection:
    """A read-only connection to one database for SQL that nobody has checked.

    Only one SELECT (or WITH ... SELECT, or VALUES) is run at a time, with a list of harmless functions; it is stopped
    after `seconds`, its answer is cut after `rows` rows and cells after `cell` characters. May be used from several
    threads.
    """

    def __init__(self, path: str | Path, *, seconds: float = 2.0, rows: int = 1000, cell: int = 2000):
        self.path = Path(path)
        self.seconds, self.rows, self.cell = seconds, rows, cell
        self.gold: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._deadline = math.inf
        self._denied = ""
        self._raw = connect(self.path)
        for limit, value in _LIMITS:
            self._raw.setlimit(limit, value)
        self._raw.set_authorizer(self._authorize)
        self._raw.set_progress_handler(self._late, _STEPS)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the connection cannot be used afterwards."""
        self._raw.close()

    def execute(self, sql: str, *, rows: int | None = None) -> Result:
        """Run one statement. Whatever is wrong with it is said in `Result.error`."""
        limit = self.rows if rows is None else rows
        start = time.perf_counter()
        refused = _refuse(sql)
        if refused:
            return Result(error=refused)
        with self._lock:
            self._denied = ""
            self._deadline = start + self.seconds
            try:
                cursor = self._raw.execute(sql)
                fetched = cursor.fetchmany(limit + 1)
                columns = tuple(str(entry[0]) for entry in cursor.description or ())
                cursor.close()
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
                return Result(error=self._reason(error), seconds=time.perf_counter() - start)
            finally:
                self._deadline = math.inf
        shown = tuple(tuple(self._cut(cell) for cell in row) for row in fetched[:limit])
        return Result(columns, shown, len(fetched) > limit, None, time.perf_counter() - start)

    def _cut(self, cell: Any) -> Any:
        if isinstance(cell, str) and len(cell) > self.cell:
            return cell[: self.cell] + "…"
        if isinstance(cell, bytes):
            return f"<{len(cell)} bytes>"
        return cell

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
        if text == "interrupted":
            return f"stopped after {self.seconds:g} s, the limit for one statement"
        if "one statement" in text:
            return "only one statement is run at a time"
        if isinstance(error, MemoryError) or "too big" in text:
            return "the answer is too large"
        return text or type(error).__name__


def answer(connection: Connection, sql: str) -> Result:
    """Run a model's SQL for a person: `Result.rows` to show, or `Result.error` to tell."""
    return connection.execute(sql)


def _refuse(sql: str) -> str | None:
    rest = sql
    while found := _COMMENT.match(rest):
        rest = rest[found.end() :]
    if "\x00" in sql:
        return "the statement holds a NUL character"
    if not rest.strip("; \n\t"):
        return "there is no statement"
    word = re.match(r"\(*\s*([A-Za-z]+)", rest)
    if word is None or word.group(1).upper() not in ("SELECT", "WITH", "VALUES"):
        return "only reading with SELECT is allowed"
    return None
