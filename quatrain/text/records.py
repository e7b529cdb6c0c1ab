"""Records of data files, one at a time and each with its place: JSON lines, JSON lists, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrain.errors import InputError
from quatrain.text.decoding import is_packed, read_text, suffix_of

#: Endings of files that hold records; each may be followed by .gz, Parquet excepted.
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

#: This many problems of a file are shown, the others counted.
SHOWN = 20

_TOO_DEEP = "nested too deep"


@dataclass(frozen=True)
class Record:
    """One record and its place, as "file:line" (for Parquet "file:row 7"); `fault` says why there is no value."""

    place: str
    value: Any = None
    fault: str | None = None


class Problems:
    """Faults of a file as they are found; the first are kept, all are counted."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, problem: str) -> None:
        """Note one fault."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(problem)

    def error(self, what: str) -> InputError:
        """The InputError that shows them."""
        more = [f"… and {self.count - len(self.first):,} more"] if self.count > len(self.first) else []
        count = f"{self.count:,} problem{'s' if self.count > 1 else ''}"
        return InputError(f"{what}: {count}", [*self.first, *more])


def read_records(path: Path, *, column: str | None = None) -> Iterator[Record]:
    """The records of a file of one of RECORD_SUFFIXES. A line that is no record comes as a Record with a `fault`.
    `column` says the one that is wanted, so that Parquet need not read the others.

    Raises InputError for a file that cannot be read at all.
    """
    suffix = suffix_of(path)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path)
    if suffix == ".json":
        return _json_list(path)
    if suffix in (".csv", ".tsv"):
        return _rows(path, tabs=suffix == ".tsv")
    if suffix == ".parquet":
        return _parquet(path, column)
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


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(lines(read_text(path)), 1):
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


def _json_list(path: Path) -> Iterator[Record]:
    """The items of a JSON list, each with the line on which it begins; one object is a list of one."""
    text = "".join(read_text(path))
    at = _skip(text, 0)
    decoder = json.JSONDecoder()
    single = text[at : at + 1] != "["
    at = at if single else _skip(text, at + 1)
    line, counted = 1, 0
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else _TOO_DEEP
            hint = "; for one object a line, give the file the ending .jsonl" if single else ""
            yield Record(f"{path}:{line}", fault=f"not valid JSON ({reason}){hint}")
            return
        yield Record(f"{path}:{line}", value)
        at = _skip(text, end)
        if single:
            if at < len(text):
                yield Record(f"{path}:{line}", fault="more than one JSON value; give the file the ending .jsonl")
            return
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            yield Record(f"{path}:{line}", fault="not valid JSON (the list is not closed, or a comma is missing)")
            return


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _rows(path: Path, *, tabs: bool) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    source = lines(read_text(path))
    # The registered format of TSV (IANA text/tab-separated-values) has no quotes: a field may begin with one.
    reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(source, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for row in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
            elif len(row) != len(header):
                yield Record(place, fault=f"{len(row)} fields, the header has {len(header)}")
            else:
                yield Record(place, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        yield Record(f"{path}:{start}", fault=f"not valid CSV ({error})")


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
