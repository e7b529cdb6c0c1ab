"""Reads the rows of data files, one at a time, each with its place: JSON lines, JSON, CSV, TSV, Parquet and CoNLL.

A row of a table is a dictionary of its columns; a table without a header has the columns "1", "2", …. A sentence of a
CoNLL file is one row whose columns are lists. A question of a SQuAD file is one row with its paragraph.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import MAX_DEPTH, depth_of, open_regular, parse_whole_number
from quatrain.core.wording import shorten
from quatrain.data.decoding import is_packed, lines_of, read_text, suffix_of
from quatrain.data.formats import has_known_columns
from quatrain.data.records import Row
from quatrain.data.tables import read_table

PARQUET_BATCH = 256
"""Rows of a Parquet file in memory at once."""

ROWS_A_BYTE = 10_000
"""Limit on the rows per byte of a Parquet file. Run-length encoding allows many; a larger count is damaged."""


def read_parquet(path: Path, column: str | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, only the field `column` if it exists. Binary columns of UTF-8 become text.

    Raises InputError for a file that is not Parquet, is damaged, or has no column or a duplicate one.
    """
    with require(f"{path}: Parquet", "pyarrow", "data"):
        import pyarrow
        import pyarrow.parquet
    row = 0
    with open_regular(path) as handle:
        try:
            with pyarrow.parquet.ParquetFile(handle) as file:
                names = file.schema_arrow.names
                _check_parquet(path, names, file.metadata.num_rows, path.stat().st_size)
                columns = [column] if column in names else None
                for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                    for value in batch.to_pylist():
                        row += 1
                        yield Row(f"{path}:row {row}", {name: _parquet_value(item) for name, item in value.items()})
        except (
            pyarrow.ArrowException,
            OSError,
            ValueError,
            ArithmeticError,
            KeyError,
            TypeError,
            MemoryError,
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            after = f" after row {row:,}" if row else ""
            raise InputError(f"{path} is not a valid Parquet file{after}: {reason}") from error


def _check_parquet(path: Path, names: list[str], rows: int, size: int) -> None:
    if not names:
        raise InputError(f"{path} has no columns")
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has the column {', '.join(map(repr, duplicates))} more than once; rename columns")
    if rows > ROWS_A_BYTE * size:
        raise InputError(f"{path} claims {rows:,} rows in {size:,} bytes; it is damaged")


def _parquet_value(value: Any) -> Any:
    """A Parquet value with JSON's types where possible: UTF-8 bytes as text, map entries as an object."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return {str(key): _parquet_value(item) for key, item in value}
        return [_parquet_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _parquet_value(item) for key, item in value.items()}
    return value


TAGGED_SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio")
"""Suffixes of files that have the words and tags of a sentence in columns."""

#: Suffixes of files of records; each, except Parquet's, may be followed by .gz, .bz2 or .xz.
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TAGGED_SUFFIXES)

#: The columns of CoNLL-U (https://universaldependencies.org/format.html).
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")

_TOO_DEEP = "nested too deeply"

MAX_DOCUMENT = 1024 * 1024 * 1024
"""Limit on the characters of a JSON document, which is parsed at once. JSON lines have no such limit."""


def read_records(
    path: Path,
    *,
    column: str | None = None,
    header: bool | None = None,
    suffix: str | None = None,
    pieces: Iterable[str] | None = None,
) -> Iterator[Row]:
    """The rows of a file with one of RECORD_SUFFIXES. A line that is not a row becomes a Row with a `fault`.

    `column` limits Parquet files to one column. `header`: whether a table has a header (None: detect it). `suffix`
    overrides the suffix of the file, `pieces` is the text if it has been read already. Raises
    InputError for a file that cannot be read at all.
    """
    suffix = suffix or suffix_of(path)
    if suffix == ".parquet":
        if is_packed(path):
            raise InputError(f"{path}: Parquet files are compressed internally; unpack this one")
        return read_parquet(path, column)
    text = read_text(path) if pieces is None else pieces
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, text)
    if suffix == ".json":
        return _json(path, text)
    if suffix in (".csv", ".tsv"):
        return read_table(path, text, tabs=suffix == ".tsv", header=header, known=has_known_columns)
    if suffix in TAGGED_SUFFIXES:
        return _sentences(path, text, universal=suffix == ".conllu")
    raise InputError(f"{path}: records are read from {', '.join(RECORD_SUFFIXES)} files, not {suffix or 'this'}")


def _json_lines(path: Path, text: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines_of(text, path), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield Row(place, _checked(_DECODER.decode(line), line))
        except json.JSONDecodeError as error:
            yield Row(place, fault=_json_fault(error, line.strip()))
        except (ValueError, RecursionError) as error:
            yield Row(place, fault=f"not valid JSON ({_reason(error)})")


def _json_fault(error: json.JSONDecodeError, text: str) -> str:
    return f"not valid JSON ({error.msg} at column {error.colno}): {shorten(text, 60)}"


_DECODER = json.JSONDecoder(parse_int=parse_whole_number)


def _checked(value: Any, text: str) -> Any:
    """The value parsed from `text`. Raises ValueError if it is nested too deeply."""
    if text.count("[") + text.count("{") > MAX_DEPTH and depth_of(value) > MAX_DEPTH:
        raise ValueError(f"{_TOO_DEEP}; at most {MAX_DEPTH} levels are read")
    return value


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at index `at`, and the index of its end."""
    value, end = _DECODER.raw_decode(text, at)
    if end - at > 2 * MAX_DEPTH and depth_of(value) > MAX_DEPTH:
        raise ValueError(f"{_TOO_DEEP}; at most {MAX_DEPTH} levels are read")
    return value, end


def _json(path: Path, pieces: Iterable[str]) -> Iterator[Row]:
    """The items of a JSON list, or of the list "data" of an object, each with the line on which it begins.

    Any other value is a single row.
    """
    text = _document(path, pieces)
    at = _skip(text, 0)
    line = _Line(text)
    if text[at : at + 1] == "[":
        end = yield from _json_list(path, text, at)
        yield from _trailing(path, text, end, line)
        return
    try:
        value, end = _value(text, at)
    except (ValueError, RecursionError) as error:
        hint = "; if it has one object per line, give it the ending .jsonl"
        yield Row(f"{path}:{line(at)}", fault=f"not valid JSON ({_reason(error)}){hint}")
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        start = next(start for key, start, _ in _children(text, at) if key == "data")
        articles = any(isinstance(item, dict) and "paragraphs" in item for item in value["data"])
        yield from _squad(path, text, start, line) if articles else _json_list(path, text, start)
    else:
        yield Row(f"{path}:{line(at)}", value)
    yield from _trailing(path, text, end, line)


def _document(path: Path, pieces: Iterable[str]) -> str:
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_DOCUMENT:
            raise InputError(
                f"{path} has more than {MAX_DOCUMENT:,} characters, and JSON is parsed at once; write one object per "
                "line (.jsonl), for files of any size"
            )
    return "".join(parts)


def _trailing(path: Path, text: str, end: int | None, line: _Line) -> Iterator[Row]:
    """The fault of text after a JSON value that ends at `end`; nothing if there is none, or if `end` is None."""
    if end is None or (at := _skip(text, end)) == len(text):
        return
    rest = " ".join(text[at : at + 40].split())
    is_value = text[at] in '{["'
    fault = (
        "more than one JSON value; give the file the ending .jsonl" if is_value else "not valid JSON (text after it)"
    )
    yield Row(f"{path}:{line(at)}", fault=f"{fault}: {rest}")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}"
    return _TOO_DEEP if isinstance(error, RecursionError) else str(error)


class _Line:
    """The line number of an index of a text, for ascending indices."""

    def __init__(self, text: str):
        self.text, self.line, self.counted = text, 1, 0

    def __call__(self, at: int) -> int:
        self.line += self.text.count("\n", self.counted, at)
        self.counted = at
        return self.line


def _json_list(path: Path, text: str, at: int) -> Generator[Row, None, int | None]:
    """The items of the list that begins at index `at`. Returns the index of its end, None if it is not closed."""
    line = _Line(text)
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        place = f"{path}:{line(at)}"
        try:
            value, end = _value(text, at)
        except (ValueError, RecursionError) as error:
            closed = "" if at < len(text) else "; the list is not closed"
            yield Row(place, fault=f"not valid JSON ({_reason(error)}){closed}")
            return None
        yield Row(place, value)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            fault = "not valid JSON (the list is not closed, or a comma is missing)"
            yield Row(f"{path}:{line(at)}", fault=fault)
            return None
    return at + 1


def _children(text: str, at: int) -> Iterator[tuple[str | int, int, Any]]:
    """The values of the valid JSON list or object at index `at`, as (key or number, index of the value, value)."""
    is_list, number = text[at] == "[", 0
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        key: str | int = number
        if not is_list:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        value, end = _DECODER.raw_decode(text, at)
        yield key, at, value
        number += 1
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _squad(path: Path, text: str, at: int, line: _Line) -> Iterator[Row]:
    """The questions of a SQuAD file (Rajpurkar et al. 2016, arXiv 1606.05250), each with its paragraph."""
    for _, article_at, article in _children(text, at):
        place = f"{path}:{line(article_at)}"
        if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
            yield Row(place, fault="field 'paragraphs' is missing or not a list; each article needs one")
            continue
        start = next(start for key, start, _ in _children(text, article_at) if key == "paragraphs")
        for _, paragraph_at, paragraph in _children(text, start):
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                place = f"{path}:{line(paragraph_at)}"
                yield Row(place, fault="field 'qas' is missing or not a list; each paragraph needs one")
                continue
            rest = {key: value for key, value in paragraph.items() if key != "qas"}
            rest |= {"title": article["title"]} if "title" in article else {}
            start = next(start for key, start, _ in _children(text, paragraph_at) if key == "qas")
            for _, question_at, question in _children(text, start):
                value = rest | question if isinstance(question, dict) else question
                yield Row(f"{path}:{line(question_at)}", value)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _sentences(path: Path, text: Iterable[str], *, universal: bool) -> Iterator[Row]:
    """The sentences of a file with one word per line, in columns of tabs or spaces, and empty lines between sentences.

    The multiword tokens and empty nodes of CoNLL-U are skipped, because their words have lines of their own.
    """
    rows: list[list[str]] = []
    numbers: list[int] = []
    valid, comment = True, ""
    for number, line in enumerate(_with_empty_line(lines_of(text, path)), 1):
        line = line.rstrip("\n")
        if not line.strip():
            if rows and valid:
                names = CONLLU if universal else [str(column) for column in range(1, len(rows[0]) + 1)]
                value: dict[str, Any] = {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True),
                                                                                  strict=True)}  # fmt: skip
                yield Row(f"{path}:{numbers[0]}", value | ({"text": comment} if comment else {}), lines=tuple(numbers))
            rows, numbers, valid, comment = [], [], True, ""
            continue
        if universal and line.startswith("#"):
            comment = line.removeprefix("# text = ") if line.startswith("# text = ") else comment
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if cells[0] == "-DOCSTART-":
            continue
        expected = len(CONLLU) if universal else len(rows[0]) if rows else max(2, len(cells))
        if len(cells) != expected or not all(cell.strip() for cell in cells):
            valid = False
            yield Row(f"{path}:{number}", fault=_column_fault(cells, expected))
        elif not (universal and not cells[0].isdigit()):
            rows.append(cells)
            numbers.append(number)


def _column_fault(cells: list[str], expected: int) -> str:
    if len(cells) != expected:
        count = f"{len(cells)} column{'s' if len(cells) > 1 else ''}"
        return f"{count}, must be {expected}, separated by one tab or by spaces"
    empty = next(number for number, cell in enumerate(cells, 1) if not cell.strip())
    return f"column {empty} is empty; write a word or a tag"


def _with_empty_line(text: Iterator[str]) -> Iterator[str]:
    yield from text
    yield ""
