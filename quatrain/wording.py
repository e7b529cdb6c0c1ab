"""Numbers, tables and texts as a person reads them in a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO


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
    """A metric as a reader wants it: shares as per cent, counts with separators, losses with three places."""
    if isinstance(value, str):
        return value
    if name.endswith(("accuracy", "exact_match", "share", "valid")) and value <= 1:  # SQuAD counts to 100
        return f"{value:.1%}"
    if isinstance(value, int) or abs(value) >= 1000:
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
"""Not printable by Unicode's tables, yet part of ordinary texts: spaces, joiners of Persian and of emoji."""


def printable(text: str) -> str:
    """Text of unknown origin for a terminal: control characters as `\\x1b`, so that none of them is obeyed.

    Line ends and tabs stay. C1 controls, lone surrogates and the characters that turn the direction of text count too.
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
    """Write to a stream whose encoding may lack some of the characters (a Windows code page, the C locale)."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain text: numbers to the right, everything else to the left."""
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


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1000 else f"{value:.6g}"
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)
