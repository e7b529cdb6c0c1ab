"""Rows of data files, one at a time and each with its place: JSON lines, JSON, CSV, TSV, Parquet and CoNLL columns.

A row of a table is a dictionary of its columns; a table without a header has the columns "1", "2", …. A sentence of a
CoNLL file is one row whose columns are lists. A question of a SQuAD file is one row with its paragraph.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from quatrain.errors import InputError
from quatrain.text.decoding import is_packed, read_text, suffix_of
from quatrain.text.records import Record

#: Endings of files whose sentences are columns of words and tags.
TAGGED_SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio")

#: Endings of files that hold records; each may be followed by .gz, Parquet excepted.
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TAGGED_SUFFIXES)

#: The columns of CoNLL-U (https://universaldependencies.org/format.html).
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")

_TOO_DEEP = "nested too deep"
# A name of a column: a few words, no sentence.
_NAME = re.compile(r"[^\W\d][\w\-()/%#:.]*( [\w\-()/%#:.]+){0,3}(?<![.:])")


def read_records(
    path: Path,
    *,
    column: str | None = None,
    header: bool | None = None,
    suffix: str | None = None,
    pieces: Iterable[str] | None = None,
) -> Iterator[Record]:
    """The rows of a file of one of RECORD_SUFFIXES. A line that is no row comes as a Record with a `fault`.

    `column` says the one that is wanted, so that Parquet need not read the others; `header` whether a table has one
    (None: its first row tells); `suffix` the ending whose format it has, if its own does not say; `pieces` its text
    where that has been read already. Raises InputError for a file that cannot be read at all.
    """
    suffix = suffix or suffix_of(path)
    if suffix == ".parquet":
        return _parquet(path, column)
    text = read_text(path) if pieces is None else pieces
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, text)
    if suffix == ".json":
        return _json(path, text)
    if suffix in (".csv", ".tsv"):
        return _table(path, text, tabs=suffix == ".tsv", header=header)
    if suffix in TAGGED_SUFFIXES:
        return _sentences(path, text, universal=suffix == ".conllu")
    raise InputError(f"{path}: records are read from {', '.join(RECORD_SUFFIXES)} files, not {suffix or 'this'}")


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of text as whole lines, their line ends kept."""
    held: list[str] = []
    for piece in pieces:
        if "\n" not in piece:
            held.append(piece)
            continue
        found = _split("".join([*held, piece]))
        held = [found.pop()]
        yield from found
    rest = "".join(held)
    if rest:
        yield rest


def _split(text: str) -> list[str]:
    """Lines with their ends; the last item is what follows the last line end. Only "\\n" ends a line."""
    parts = text.split("\n")
    return [*(part + "\n" for part in parts[:-1]), parts[-1]]


def _json_lines(path: Path, text: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines(text), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield Record(place, json.loads(line))
        except json.JSONDecodeError as error:
            yield Record(place, fault=_json_fault(error, line.strip()))
        except RecursionError:
            yield Record(place, fault=f"not valid JSON ({_TOO_DEEP})")


def _json_fault(error: json.JSONDecodeError, text: str) -> str:
    shown = text if len(text) <= 60 else text[:57] + "…"
    return f"not valid JSON ({error.msg} at column {error.colno}): {shown}"


def _json(path: Path, pieces: Iterable[str]) -> Iterator[Record]:
    """The items of a JSON list, or of the list "data" in an object, each with the line on which it begins.

    Any other object is a list of one.
    """
    text = "".join(pieces)
    at = _skip(text, 0)
    if text[at : at + 1] == "[":
        yield from _json_list(path, text, at)
        return
    line = _Line(text)
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError) as error:
        hint = "; for one object a line, give the file the ending .jsonl"
        yield Record(f"{path}:{line(at)}", fault=f"not valid JSON ({_reason(error)}){hint}")
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        start = next(start for key, start, _ in _children(text, at) if key == "data")
        articles = any(isinstance(each, dict) and "paragraphs" in each for each in value["data"])
        yield from _squad(path, text, start, line) if articles else _json_list(path, text, start)
    else:
        yield Record(f"{path}:{line(at)}", value)
    if _skip(text, end) < len(text):
        fault = "more than one JSON value; give the file the ending .jsonl"
        yield Record(f"{path}:{line(_skip(text, end))}", fault=fault)


def _reason(error: json.JSONDecodeError | RecursionError) -> str:
    return f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else _TOO_DEEP


class _Line:
    """The line of a place in a text; each place asked for lies behind the one before."""

    def __init__(self, text: str):
        self.text, self.line, self.counted = text, 1, 0

    def __call__(self, at: int) -> int:
        self.line += self.text.count("\n", self.counted, at)
        self.counted = at
        return self.line


def _json_list(path: Path, text: str, at: int) -> Iterator[Record]:
    """The items of the list that begins at `at`."""
    line = _Line(text)
    decoder = json.JSONDecoder()
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        place = f"{path}:{line(at)}"
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            closed = "" if at < len(text) else "; the list is not closed"
            yield Record(place, fault=f"not valid JSON ({_reason(error)}){closed}")
            return
        yield Record(place, value)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            fault = "not valid JSON (the list is not closed, or a comma is missing)"
            yield Record(f"{path}:{line(at)}", fault=fault)
            return


def _children(text: str, at: int) -> Iterator[tuple[str | int, int, Any]]:
    """The values of a valid JSON list or object at `at`: key or number, where the value begins, the value."""
    decoder = json.JSONDecoder()
    is_list, number = text[at] == "[", 0
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        key: str | int = number
        if not is_list:
            key, at = decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        value, end = decoder.raw_decode(text, at)
        yield key, at, value
        number += 1
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _squad(path: Path, text: str, at: int, line: _Line) -> Iterator[Record]:
    """The questions of SQuAD's files (Rajpurkar et al. 2016, arXiv 1606.05250), each with its paragraph."""
    for _, article_at, article in _children(text, at):
        place = f"{path}:{line(article_at)}"
        if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
            yield Record(place, fault="field 'paragraphs' is missing or no list; write one for every article")
            continue
        start = next(start for key, start, _ in _children(text, article_at) if key == "paragraphs")
        for _, paragraph_at, paragraph in _children(text, start):
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                place = f"{path}:{line(paragraph_at)}"
                yield Record(place, fault="field 'qas' is missing or no list; write one for every paragraph")
                continue
            rest = {key: value for key, value in paragraph.items() if key != "qas"}
            rest |= {"title": article["title"]} if "title" in article else {}
            start = next(start for key, start, _ in _children(text, paragraph_at) if key == "qas")
            for _, question_at, question in _children(text, start):
                value = rest | question if isinstance(question, dict) else question
                yield Record(f"{path}:{line(question_at)}", value)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def is_header(row: list[str]) -> bool:
    """Whether a table's first row names its columns: each cell is like a name, none twice; the first may be empty."""
    names = [name.strip() for name in row]
    rest = names[1:] if len(names) > 1 and not names[0] else names
    return len(set(names)) == len(names) and all(_NAME.fullmatch(name) for name in rest)


def _table(path: Path, text: Iterable[str], *, tabs: bool, header: bool | None) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    source = lines(text)
    # The registered format of TSV (IANA text/tab-separated-values) has no quotes: a field may begin with one.
    reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(source, strict=True)
    names: list[str] | None = None
    first = ""
    start = 1
    try:
        for row in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if not row or (names is None and row[0].startswith("# ")):
                continue
            if names is None:
                if is_header(row) if header is None else header:
                    names, first = [name.strip() for name in row], "the header"
                    continue
                names, first = [str(number) for number in range(1, len(row) + 1)], "the first row"
            if len(row) != len(names):
                hint = "a tab parts fields, take it out of the text" if tabs else "a field with a comma needs quotes"
                yield Record(place, fault=f"{len(row)} fields, {first} has {len(names)}; {hint}")
            else:
                yield Record(place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        yield Record(f"{path}:{start}", fault=f"not valid CSV ({error}); the rows behind it cannot be read")


def _sentences(path: Path, text: Iterable[str], *, universal: bool) -> Iterator[Record]:
    """The sentences of a file with a word a line, its columns parted by tabs or spaces, and empty lines between them.

    In CoNLL-U words of several tokens and empty nodes are left out: their tokens are there by themselves.
    """
    rows: list[list[str]] = []
    numbers: list[int] = []
    whole, said = True, ""
    for number, line in enumerate(_with_an_end(lines(text)), 1):
        line = line.rstrip("\n")
        if not line.strip():
            if rows and whole:
                names = CONLLU if universal else [str(each) for each in range(1, len(rows[0]) + 1)]
                value: dict[str, Any] = {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True),
                                                                                  strict=True)}  # fmt: skip
                yield Record(f"{path}:{numbers[0]}", value | ({"text": said} if said else {}), lines=tuple(numbers))
            rows, numbers, whole, said = [], [], True, ""
            continue
        if universal and line.startswith("#"):
            said = line.removeprefix("# text = ") if line.startswith("# text = ") else said
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if cells[0] == "-DOCSTART-":
            continue
        wanted = len(CONLLU) if universal else len(rows[0]) if rows else max(2, len(cells))
        if len(cells) != wanted or not all(cell.strip() for cell in cells):
            whole = False
            yield Record(f"{path}:{number}", fault=_column_fault(cells, wanted))
        elif not (universal and not cells[0].isdigit()):
            rows.append(cells)
            numbers.append(number)


def _column_fault(cells: list[str], wanted: int) -> str:
    if len(cells) != wanted:
        found = f"{len(cells)} column{'s' if len(cells) > 1 else ''}"
        return f"{found}, must be {wanted}, parted by one tab or by spaces; write the missing or join the others"
    empty = next(number for number, cell in enumerate(cells, 1) if not cell.strip())
    return f"column {empty} is empty; write a word or a tag"


def _with_an_end(text: Iterator[str]) -> Iterator[str]:
    yield from text
    yield ""


def _parquet(path: Path, column: str | None) -> Iterator[Record]:
    if is_packed(path):
        raise InputError(f"{path}: Parquet files are compressed inside; unpack this one")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{path}: Parquet files need pyarrow, which is not installed. Install it with: pip install 'quatrain[data]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            row = 0
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    yield Record(f"{path}:row {row}", value)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole Parquet file: {error}") from error
