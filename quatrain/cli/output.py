"""What the verbs write: plain text for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from quatrain.wording import text_table, write_text

MAX_CELL = 60


def show(text: str = "", *, end: str = "\n") -> None:
    """Write text to standard output at once, whatever characters its encoding knows."""
    write_text(sys.stdout, text + end)
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Write one JSON object on a line."""
    show(json.dumps(value, ensure_ascii=False, default=str))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, json_lines: bool = False) -> None:
    """Write a table, or one JSON object a row. In a terminal, the last column is cut to the width."""
    if json_lines:
        for row in rows:
            show_json(dict(zip(columns, row, strict=True)))
        return
    text = text_table(columns, rows)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in text.splitlines())
    show(text)


def shorten(value: object) -> object:
    """A cell of a table on one line and no longer than `MAX_CELL` characters."""
    if not isinstance(value, str | bytes):
        return value
    text = " ".join(value.split()) if isinstance(value, str) else f"{len(value):,} bytes"
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"
