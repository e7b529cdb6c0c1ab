"""What the verbs write: plain text for people, JSON for programs.

Text of unknown origin (labels, names, cells, what a model says) may hold control characters that a terminal obeys. All
that is shown to a person passes `printable`; JSON escapes them by its own rules. `show_text` alone leaves the
characters as they are where the output is a file or a pipe, since the text itself is what was asked for.
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
    """Write text for a person to standard output at once; control characters show as text."""
    write_text(sys.stdout, printable(text + end))
    sys.stdout.flush()


def show_text(text: str, *, end: str = "\n") -> None:
    """Write a text that was asked for: as it is to a file or a pipe, its control characters as text to a terminal."""
    write_text(sys.stdout, printable(text + end) if sys.stdout.isatty() else text + end)
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Write one JSON object on a line."""
    write_text(sys.stdout, json_line(value, sys.stdout.encoding) + "\n")
    sys.stdout.flush()


def show_error(text: str, prefix: str = "") -> None:
    """Write a message to standard error: nothing in it is read as markup, and control characters show as text."""
    with contextlib.suppress(OSError, ValueError, QuatrainError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        write_text(sys.stderr, printable(f"{prefix}{text}\n"))
        sys.stderr.flush()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, json_lines: bool = False) -> None:
    """Write a table, or one JSON object a row. In a terminal it is fitted to the width."""
    if json_lines:
        for row in rows:
            show_json(dict(zip(columns, row, strict=True)))
        return
    show(text_table(columns, rows, width=terminal_width()))


def terminal_width() -> int | None:
    """The columns of the terminal that is written to; None for a file or a pipe, which have no width."""
    return max(1, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def shorten(value: object) -> object:
    """A cell of a table on one line and no longer than `MAX_CELL` characters."""
    if not isinstance(value, str | bytes):
        return value
    text = " ".join(value.split()) if isinstance(value, str) else f"{len(value):,} bytes"
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def shortened(engine: Engine, ids: Sequence[int], params: SamplingParams, *, truncate: bool = False) -> str | None:
    """What to say where the model's context has no room for all the new tokens that are asked for; else None."""
    ids = engine.truncate(list(ids), params) if truncate else ids
    room = engine.remaining_tokens(ids)
    if room is None or not 0 < room < params.max_new_tokens:
        return None
    return (
        f"Note: the model's context has room for {room:,} new tokens after the {len(ids):,} of the prompt, so "
        f"max_new_tokens {params.max_new_tokens:,} is cut to {room:,}."
    )
