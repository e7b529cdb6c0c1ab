"""Formats numbers, tables and texts for terminals and logs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from itertools import islice
from pathlib import PurePath
from typing import Any, TextIO


def format_duration(seconds: float) -> str:
    """`9.4 s`, `2 min 05 s`, `3 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_bytes(count: float) -> str:
    """`812 B`, `3.4 MB`, `1.2 GB` (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_metric(name: str, value: float) -> str:
    """A metric for display: shares in per cent, counts with separators, losses with three decimals."""
    if isinstance(value, str):
        return value
    if name.endswith(("accuracy", "exact_match", "share", "valid")) and value <= 1:  # SQuAD counts to 100
        return f"{value:.1%}"
    if isinstance(value, int) or abs(value) >= 1000 or (name.endswith("_per_second") and abs(value) >= 10):
        return f"{value:,.0f}"
    if name in ("learning_rate", "lr"):
        return f"{value:.1e}"
    return f"{value:.3f}"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 2.104, 51,300 tokens/s`."""
    parts = []
    for name, value in metrics.items():
        label = name.replace("_per_second", "/s").replace("_", " ")
        text = format_metric(name, value)
        parts.append(f"{text} {label}" if label.endswith("/s") else f"{label} {text}")
    return ", ".join(parts)


_HARMLESS = "\n\t\u00a0\u00ad\u200b\u200c\u200d\u2060\ufeff\u3000"
"""Characters of ordinary texts that Unicode calls not printable: spaces, joiners of Persian and of emoji."""


def printable(text: str) -> str:
    """Untrusted text made safe for a terminal: control characters are escaped, such as `\\x1b`.

    Line ends and tabs stay. C1 controls, lone surrogates and bidirectional controls are escaped too.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in _HARMLESS
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )


def write_text(stream: TextIO, text: str) -> None:
    """Write to a stream; characters that its encoding lacks (Windows code page, C locale) are escaped."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def json_line(value: Any, encoding: str | None = "utf-8") -> str:
    """A value as JSON on one line; control characters and those that `encoding` lacks are escaped as `\\uXXXX`."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value, default=str)
    if text.isprintable():
        return text
    # Outside strings JSON is ASCII, and json.dumps has escaped the control characters below the space.
    return "".join(c if c.isprintable() or c in _HARMLESS else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters; a longer one ends with "…"."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_names(names: Iterable[object], most: int = 12) -> str:
    """The first names of a list, and their number if there are more than `most`: `a, b, … (14)`."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + (f", … ({len(texts)})" if len(texts) > most else "")


def format_value(value: object, limit: int = 80) -> str:
    """A user's value for a message, on one line and cut to `limit` characters.

    Text, numbers, lists and mappings are written as in JSON. Control characters are escaped.
    """
    text = _written(value, limit, 8)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shorten(text, limit)


def _written(value: object, limit: int, depth: int) -> str:
    """A value as in JSON, with "…" for what is nested deeper than `depth`."""
    if isinstance(value, str):
        return json.dumps(value[:limit], ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"a whole number of {value.bit_length():,} bits"
    if depth == 0 and isinstance(value, Mapping | list | tuple):
        return "…"
    if isinstance(value, Mapping):
        pairs = islice(value.items(), limit)
        items = (f"{_written(key, limit, depth - 1)}: {_written(item, limit, depth - 1)}" for key, item in pairs)
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_written(item, limit, depth - 1) for item in islice(value, limit)) + "]"
    return str(value) if isinstance(value, int | float | date | time | PurePath) else repr(value)


def type_name(value: object) -> str:
    """The type of a user's value in words, such as "text", "a whole number" or "an object"."""
    for types, name in _TYPE_NAMES:
        if isinstance(value, types):
            return name
    return "null" if value is None else type(value).__name__


_TYPE_NAMES = (
    (bool, "true or false"),
    (str, "text"),
    (int, "a whole number"),
    (float, "a number"),
    (Mapping, "an object"),
    (list | tuple, "a list"),
    (date | time, "a date or time"),
)

MAX_BITS = 1_000
"""Limit on the bits of an integer that messages write out."""


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> str:
    """A plain-text table: numbers right-aligned, everything else left-aligned.

    If it is wider than `width`, the last column is wrapped; if that leaves too little room, each row becomes a block
    with the first cell above the others.
    """
    if width is not None:
        whole = text_table(columns, rows)
        if max(map(len, whole.splitlines())) <= width:
            return whole
        return _wrapped(columns, rows, width) or _blocks(columns, rows, width)
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    numeric = [
        bool(rows) and all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        for index in range(len(columns))
    ]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(columns)), line(["-" * width for width in widths]), *map(line, cells)])


_LEAST_COLUMN = 24
"""The minimal readable width of a column of sentences."""


def _wrapped(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> str | None:
    """The table with its last column wrapped; None if the others leave too little room."""
    last = len(columns) - 1
    others = text_table(columns[:last], [row[:last] for row in rows]) if last else ""
    room = width - max(map(len, others.splitlines()), default=0) - 2
    if room < _LEAST_COLUMN or any(isinstance(row[last], int | float) for row in rows):
        return None
    broken: list[list[object]] = []
    for row in rows:
        lines = _lines(_cell(row[last]), room)
        broken.append([*row[:last], lines[0]])
        broken += [[*[None] * last, line] for line in lines[1:]]
    return text_table(columns, broken)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> str:
    """One block of lines per row, for a narrow terminal."""
    room = max(1, width - 2)
    lines: list[str] = []
    for row in rows:
        lines += _lines(_cell(row[0]), max(1, width))
        for name, value in zip(columns[1:], row[1:], strict=True):
            text = _cell(value)
            if text:
                lines += [f"  {line}"[:width] for line in _lines(f"{name}: {text}" if name else text, room)]
    return "\n".join(lines) if rows else "\n".join(_lines(", ".join(columns), max(1, width)))


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1000 else f"{value:.6g}"
    return printable(" ".join(value.split()) if isinstance(value, str) else str(value))
