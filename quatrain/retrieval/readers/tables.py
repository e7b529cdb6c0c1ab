"""Rows of CSV, TSV, JSON lines, JSON and Parquet files: each row is a document.

Its text is that of the column `text` (or what `columns` names), its title that of `title`; the other columns are
metadata. Without a column of text a row is written as lines "column: value".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean
from quatrain.data.rows import read_records
from quatrain.retrieval.documents import IndexDocument, cleaned
from quatrain.retrieval.readers import Columns

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
TEXTS = ("text", "content", "body", "document", "passage", "contents", "abstract")
TITLES = ("title", "heading", "subject", "question", "name")
NAMES = ("_id", "id", "doc_id")


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The documents of a file's rows. Raises InputError for a file that is not of its format, or lacks a column."""
    for number, row in enumerate(read_records(path), 1):
        if row.fault is not None:
            raise InputError(f"{row.place}: {row.fault}")
        yield document_of(row.value, f"row {number}", columns, row.place)


def document_of(value: Any, part: str, columns: Columns, place: str) -> IndexDocument:
    """A row as a document."""
    if not isinstance(value, Mapping):
        return IndexDocument(cleaned(value if isinstance(value, str) else _written(value)), part=part)
    text, title = _column(value, "text", columns, TEXTS, place), _column(value, "title", columns, TITLES, place)
    name = next((str(value[key]) for key in NAMES if isinstance(value.get(key), str | int)), None)
    metadata = {
        cleaned(str(key)): cleaned(each) if isinstance(each, str) else each
        for key, each in value.items()
        if key not in (text, title) and isinstance(each, str | int | float | bool)
    }
    if text is None:
        lines = (f"{key}: {_written(each)}" for key, each in value.items() if each not in (None, "", [], {}))
        return IndexDocument(cleaned("\n".join(lines)), _title(value, title), name or part, metadata=metadata)
    head = _title(value, title)
    body = cleaned(_written(value[text]))
    # A title that is part of the text can be found and cited too.
    return IndexDocument(f"{head}\n\n{body}" if head else body, head, name or part, metadata=metadata)


def _column(value: Mapping[str, Any], role: str, columns: Columns, usual: tuple[str, ...], place: str) -> str | None:
    if (named := columns.get(role)) is not None:
        if named not in value:
            names = [str(key) for key in value]
            raise InputError(f"{place}: no column {named!r}; it has {', '.join(names)}{did_you_mean(named, names)}")
        return named
    lower = {str(key).lower(): str(key) for key in value}
    return next((lower[name] for name in usual if isinstance(value.get(lower.get(name, "")), str)), None)


def _title(value: Mapping[str, Any], title: str | None) -> str:
    return "" if title is None else " ".join(cleaned(_written(value[title])).split())


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
