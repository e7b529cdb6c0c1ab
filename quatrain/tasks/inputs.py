"""What a predictor reads: files with a text a line, or rows with the columns that a task needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import exists, lone_surrogate, user_path
from quatrain.core.wording import format_value
from quatrain.data.decoding import check_head, lines_of, read_text, suffix_of
from quatrain.data.formats import input_columns
from quatrain.data.rows import RECORD_SUFFIXES, read_records
from quatrain.data.sources import TEXT_SUFFIXES, is_record_file
from quatrain.tasks.predict import FIELDS, Input

PART_OF = {
    "sequence_classification": {"text": "text", "other": "text_pair"},
    "token_classification": {"text": "text", "words": "words"},
    "question_answering": {"context": "context", "question": "question"},
    "multiple_choice": {"question": "question", "choices": "choices"},
    "seq2seq": {"source": "text"},
    "embedding": {"text": "text"},
    "masked": {"text": "text"},
}
"""For each head the parts that a user may give columns to, as in `data.columns`, and the fields they become."""


def is_file(source: str) -> bool:
    """Whether a source names a file rather than being a text itself.

    Raises InputError for a folder, and for what looks like a file's name but does not exist.
    """
    short = "\n" not in source and len(source) < 4096
    if short and source.strip() and exists(source):
        if user_path(source).is_dir():
            raise InputError(f"{source} is a folder; name a file of texts, or write a text")
        return True
    looks = short and len(source.split()) == 1 and suffix_of(Path(source)) in (*TEXT_SUFFIXES, *RECORD_SUFFIXES)
    if looks:
        raise InputError(f"{format_value(source)} does not exist; to mean it as a text, send it to standard input (-)")
    return False


def read_inputs(path: str | Path, head: str, columns: Mapping[str, str] | None = None) -> Iterator[tuple[str, Input]]:
    """The inputs of a file for a head, each with its place: rows of JSON lines, CSV, …, or of a plain file its lines.

    `columns` say which columns hold the parts, where their names do not. Raises InputError where no column does, at
    the first row that cannot be read, and for a file without an input.
    """
    path = user_path(path)
    check_head(path)
    any_input = False
    rows = _of_records(path, head, columns) if is_record_file(path) else of_lines(lines_of(read_text(path), path), path)
    for row in rows:
        any_input = True
        yield row
    if not any_input:
        raise InputError(f"{path}: there is no text in it")


def of_lines(lines: Iterable[str], name: str | Path) -> Iterator[tuple[str, Input]]:
    """Each line that is not empty as an input with its place."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{name}:{number}", line.strip("\r\n")


def _of_records(path: Path, head: str, columns: Mapping[str, str] | None) -> Iterator[tuple[str, Input]]:
    header = None if not columns else not all(name.isdigit() for name in columns.values())
    fields = None if columns is None else _checked(head, columns)
    for row in read_records(path, header=header):
        if row.fault is not None:
            raise InputError(f"{row.place}: {row.fault}")
        if isinstance(row.value, str):
            yield row.place, row.value
            continue
        if not isinstance(row.value, Mapping):
            raise InputError(f"{row.place}: must be an object with fields, or a text")
        fields = fields or _columns(path, head, list(row.value))
        yield row.place, {field: _value(row.value, column, row.place) for field, column in fields.items()}


def _value(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column in row:
        value = row[column]
    elif "," in column and all(name in row for name in column.split(",")):
        value = [row[name] for name in column.split(",")]
    else:
        raise InputError(f"{place}: no column {column!r}; the columns are {', '.join(map(repr, row))}")
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each.strip() for each in texts) or not texts:
        raise InputError(f"{place}: field {column!r} is {format_value(value)}; must be text that is not empty")
    for text in texts:
        if (fault := lone_surrogate(text)) is not None:
            raise InputError(f"{place}: field {column!r} has {fault}")
    return value


def _checked(head: str, columns: Mapping[str, str]) -> dict[str, str]:
    parts = PART_OF[head]
    if unknown := [part for part in columns if part not in parts]:
        raise InputError(f"--columns: {', '.join(unknown)}; this model reads {', '.join(parts)}")
    return {parts[part]: column for part, column in columns.items()}


def _columns(path: Path, head: str, names: Sequence[str]) -> dict[str, str]:
    """The fields of a head, each with the column that holds it."""
    format = {"token_classification": "tagged", "question_answering": "qa", "multiple_choice": "choice"}.get(
        head, "text"
    )
    found = input_columns(names, format)
    fields = {PART_OF[head].get(part, part): column for part, column in found.items()}
    if head == "seq2seq" and "text" not in fields:
        source = input_columns(names, "pair").get("source")
        fields = {} if source is None else {"text": source}
    known = {name.rstrip("?") for name in FIELDS[head]}
    fields = {field: column for field, column in fields.items() if field in known}
    needed = {name for name in FIELDS[head] if not name.endswith("?")}
    if not needed <= set(fields) and "words" not in fields:
        parts = ", ".join(f"{part}=…" for part in PART_OF[head])
        raise InputError(
            f"{path}: the columns {', '.join(map(repr, names))} do not say what to read; use --columns {parts}"
        )
    return fields
