"""Output of the verbs: plain text for people, JSON for programs.

Untrusted text (labels, names, cells, model output) may contain control characters. Everything shown to people passes
`printable`, which escapes them; JSON escapes them too. Only `show_text` writes them unchanged to a file or a pipe,
since the text itself was requested.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import QuatrainError
from quatrain.core.wording import json_line, printable, text_table, write_text

if TYPE_CHECKING:
    from quatrain.generation.engine import Engine, SamplingParams

MAX_CELL = 60


def show(text: str = "", *, end: str = "\n") -> None:
    """Write text for people to standard output and flush; control characters are escaped."""
    write_text(sys.stdout, printable(text + end))
    sys.stdout.flush()


def show_marked(text: str, *, red: bool) -> None:
    """`show`, in red on a terminal that shows colours (NO_COLOR forbids them)."""
    import os

    if red and sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        write_text(sys.stdout, f"\x1b[31m{printable(text)}\x1b[0m\n")
        sys.stdout.flush()
        return
    show(text)


def show_text(text: str, *, end: str = "\n") -> None:
    """Write a requested text: unchanged to a file or a pipe, with control characters escaped to a terminal."""
    write_text(sys.stdout, printable(text + end) if sys.stdout.isatty() else text + end)
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Write one JSON object on a line."""
    write_text(sys.stdout, json_line(value, sys.stdout.encoding) + "\n")
    sys.stdout.flush()


def show_error(text: str, prefix: str = "") -> None:
    """Write an error or a note to standard error; markup is not interpreted, control characters are escaped."""
    with contextlib.suppress(OSError, ValueError, QuatrainError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        write_text(sys.stderr, printable(f"{prefix}{text}\n"))
        sys.stderr.flush()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, json_lines: bool = False) -> None:
    """Write a table, fitted to the width of a terminal, or one JSON object per row."""
    if json_lines:
        for row in rows:
            show_json(dict(zip(columns, row, strict=True)))
        return
    show(text_table(columns, rows, width=terminal_width()))


def terminal_width() -> int | None:
    """The width of the terminal; None if the output is a file or a pipe."""
    return max(1, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def shorten(value: object) -> object:
    """A table cell on one line, cut to `MAX_CELL` characters."""
    if not isinstance(value, str | bytes):
        return value
    text = " ".join(value.split()) if isinstance(value, str) else f"{len(value):,} bytes"
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def shortened(engine: Engine, ids: Sequence[int], params: SamplingParams, *, truncate: bool = False) -> str | None:
    """A note if the model's context has no room for all requested new tokens; else None."""
    ids = engine.truncate(list(ids), params) if truncate else ids
    room = engine.remaining_tokens(ids)
    if room is None or not 0 < room < params.max_new_tokens:
        return None
    return (
        f"Note: the model's context has room for {room:,} new tokens after the {len(ids):,} of the prompt, so "
        f"max_new_tokens {params.max_new_tokens:,} is cut to {room:,}."
    )
