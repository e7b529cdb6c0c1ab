"""Cuts sources into units of work and reads their documents, tolerant of what a crawl brings.

A unit is a byte range of a large file of JSON lines, one other file, or several small ones. It depends on the files
and on `unit_megabytes` alone, not on the number of processes. A line that is no JSON, a binary file or a document that
is too long becomes a `Fault`, which the funnel counts; nothing in a file can stop the work or fill the memory.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from quatrain.core.errors import InputError
from quatrain.core.reading import lone_surrogate, open_regular, user_path
from quatrain.data import catalog
from quatrain.data.curation.document import Fault, SourceDocument
from quatrain.data.curation.settings import CurationRecipe, SourceSettings
from quatrain.data.decoding import BLOCK, is_packed, packing_of, read_blocks, suffix_of
from quatrain.data.huggingface import HuggingFaceSource
from quatrain.data.rows import RECORD_SUFFIXES, read_records
from quatrain.data.sources import TEXT_SUFFIXES, find_files, is_dataset, source_names

JSON_LINES = (".jsonl", ".ndjson")
HTML = (".html", ".htm", ".xhtml")
WIKI = (".xml",)
SUFFIXES = (*TEXT_SUFFIXES, *RECORD_SUFFIXES, *HTML, *WIKI)
BYTES_PER_CHARACTER = 4
"""The most that UTF-8 takes."""
ESCAPED = 3
"""JSON escapes make a line longer than its text: \\u0041 has six bytes."""


@dataclass(frozen=True)
class Part:
    """A file of a source, or the lines of it that begin at bytes `start` to `end`."""

    source: int
    path: str
    size: int
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Unit:
    """What one process reads at a time and writes as one shard."""

    number: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of input, compressed as they are."""
        return sum((part.size if part.end is None else part.end) - part.start for part in self.parts)


def plan_units(recipe: CurationRecipe) -> list[Unit]:
    """The units of all sources. Raises InputError for a source that does not exist."""
    most = max(1, int(recipe.unit_megabytes * 1_000_000))
    units: list[Unit] = []
    waiting: list[Part] = []

    def close() -> None:
        if waiting:
            units.append(Unit(len(units), tuple(waiting)))
            waiting.clear()

    for number, source in enumerate(recipe.source):
        for path, size in _files(source):
            if suffix_of(Path(path)) in JSON_LINES and not is_packed(Path(path)) and size > most:
                close()
                starts = range(0, size, most)
                for start in starts:
                    part = Part(number, path, size, start, min(size, start + most))
                    units.append(Unit(len(units), (part,)))
                continue
            if waiting and sum(part.size for part in waiting) + size > most:
                close()
            waiting.append(Part(number, path, size))
        close()  # a unit has one source, so that a change of one source leaves the units of others
    return units


def _files(source: SourceSettings) -> list[tuple[str, int]]:
    """The files of a source with their sizes. Files of a folder that cannot be read become faults when they are."""
    found: list[tuple[str, int]] = []
    for name in source_names(source.path):
        if is_dataset(name):
            found.append((name, 0))
        elif (entry := catalog.find(name)) is not None:
            path = catalog.fetch(entry)
            found.append((str(path), path.stat().st_size))
        elif (path := user_path(name, "the source")).is_dir():
            for folder, folders, files in os.walk(path):
                folders[:] = sorted(each for each in folders if not each.startswith("."))
                places = (Path(folder, file) for file in sorted(files) if not file.startswith("."))
                found += [(str(place), place.stat().st_size) for place in places
                          if suffix_of(place) in SUFFIXES and place.is_file()]  # fmt: skip
        elif path.is_file():
            found.append((str(path), path.stat().st_size))
        else:
            find_files(name)  # raises the message for a name that is nothing
    if not found:
        raise InputError(f"{source.path} has no files with the endings {' '.join(SUFFIXES)}")
    return found


def read_unit(unit: Unit, recipe: CurationRecipe) -> Iterator[SourceDocument | Fault]:
    """The documents of a unit and the faults between them, in order; one document is in memory at a time."""
    for part in unit.parts:
        source = recipe.source[part.source]
        read = _READERS.get(suffix_of(Path(part.path)), _text)
        if is_dataset(part.path):
            read = _dataset
        try:
            for item in read(part, source, recipe.max_characters):
                yield _checked(item, recipe.max_characters)
        except (InputError, OSError, EOFError, ElementTree.ParseError, lzma.LZMAError, ValueError) as error:
            yield Fault(part.path, _reason(error))


def _reason(error: Exception) -> str:
    """The kind of a fault of a file, without the names that would make each one a kind of its own."""
    text = str(error)
    if "empty" in text:
        return "an empty file"
    return "a file that cannot be read" if isinstance(error, OSError | EOFError) else "a damaged file"


def _checked(item: SourceDocument | Fault, most: int) -> SourceDocument | Fault:
    if isinstance(item, Fault):
        return item
    if len(item.text) > most:
        return Fault(item.place, "longer than max_characters")
    if not item.text.strip():
        return Fault(item.place, "no text")
    if lone_surrogate(item.text) is not None:
        item.text = item.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if is_binary(item.text[:4096]):
        return Fault(item.place, "binary")
    return item


def is_binary(head: str) -> bool:
    """Whether the beginning of a text has a NUL, or more than a tenth of control characters."""
    controls = sum(letter < " " and letter not in "\t\n\r\f\x0b\x1b" for letter in head)
    return "\0" in head or controls > 0.1 * len(head)


def decode(content: bytes) -> str:
    """UTF-8 with or without a mark, UTF-16 with one; all else as Windows-1252, which every byte has a letter in."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


Reader = Callable[[Part, SourceSettings, int], Iterator[SourceDocument | Fault]]


def _json_lines(part: Part, source: SourceSettings, most: int) -> Iterator[SourceDocument | Fault]:
    longest = most * BYTES_PER_CHARACTER * ESCAPED
    for at, line in _lines(part, longest):
        place = f"{part.path}:{at}"
        if line is None:
            yield Fault(place, "longer than max_characters")
        elif line.strip():
            try:
                value = json.loads(decode(line))
            except (ValueError, RecursionError):
                yield Fault(place, "no JSON")
            else:
                yield _of_row(place, value, source)


def _of_row(place: str, value: Any, source: SourceSettings) -> SourceDocument | Fault:
    """The document of a row: its column of text, and the others as fields."""
    if not isinstance(value, dict):
        return Fault(place, "a row that is no object")
    text = value.get(source.column)
    if not isinstance(text, str):
        return Fault(place, f"no text in the column {source.column}")
    fields = {key: item for key, item in value.items() if key not in (source.column, "text", "source", "place")}
    return SourceDocument(place, text, source.title, fields)


def _lines(part: Part, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin in a part's range, each with its place in bytes; None for one that is too long.

    The range's first line belongs to the range before it, unless it begins exactly there.
    """
    at, size, skipping = max(0, part.start - 1), 0, part.start > 0
    pending: list[bytes] = []
    begin = at
    for block in _blocks(part, at):
        place = 0
        while (end := block.find(b"\n", place)) >= 0:
            size += end - place
            if not skipping:
                pending.append(block[place:end])
                yield begin, b"".join(pending) if size <= longest else None
            pending, size, skipping = [], 0, False
            place = end + 1
            begin = at + place
            if part.end is not None and begin >= part.end:
                return
        rest = len(block) - place
        size += rest
        if size <= longest and not skipping:
            pending.append(block[place:])
        elif not skipping:
            pending = []
        at += len(block)
    if size and not skipping:
        yield begin, b"".join(pending) if size <= longest else None


def _blocks(part: Part, start: int) -> Iterator[bytes]:
    """The bytes of a file from a place of it, decompressed."""
    if is_packed(Path(part.path)):
        yield from read_blocks(Path(part.path))
        return
    with open_regular(part.path) as handle:
        handle.seek(start)
        while block := handle.read(BLOCK):
            yield block


def _text(part: Part, source: SourceSettings, most: int) -> Iterator[SourceDocument | Fault]:
    """A plain text: one document, or one for each line or block."""
    longest = most * BYTES_PER_CHARACTER
    if source.documents == "line":
        for at, line in _lines(part, longest):
            place = f"{part.path}:{at}"
            if line is None:
                yield Fault(place, "longer than max_characters")
            else:
                yield SourceDocument(place, decode(line.rstrip(b"\r")), source.title)
        return
    if source.documents == "block":
        yield from _text_blocks(part, source, longest)
        return
    content = _whole(part, longest)
    yield (Fault(part.path, "longer than max_characters") if content is None
           else SourceDocument(part.path, decode(content), source.title))  # fmt: skip


def _text_blocks(part: Part, source: SourceSettings, longest: int) -> Iterator[SourceDocument | Fault]:
    begin, size, lines = 0, 0, list[bytes]()
    for at, line in _lines(part, longest):
        if line is not None and line.strip():
            begin = at if not lines else begin
            size += len(line)
            if size <= longest:
                lines.append(line)
        elif lines:
            yield SourceDocument(f"{part.path}:{begin}", decode(b"\n".join(lines)), source.title)
            lines, size = [], 0
    if lines:
        yield SourceDocument(f"{part.path}:{begin}", decode(b"\n".join(lines)), source.title)


def _whole(part: Part, longest: int) -> bytes | None:
    """The content of a file; None if it is longer."""
    blocks, size = [], 0
    for block in _blocks(part, 0):
        size += len(block)
        if size > longest:
            return None
        blocks.append(block)
    return b"".join(blocks)


def _html(part: Part, source: SourceSettings, most: int) -> Iterator[SourceDocument | Fault]:
    for item in _text(part, source.model_copy(update={"documents": "file"}), most):
        if isinstance(item, SourceDocument):
            item.fields["format"] = "html"
        yield item


def _wiki(part: Part, source: SourceSettings, most: int) -> Iterator[SourceDocument | Fault]:
    """The articles of a MediaWiki dump: the newest text of each page that is no redirect."""
    with closing(_opened(Path(part.path))) as handle:
        for _, element in ElementTree.iterparse(handle):
            if element.tag.rpartition("}")[2] != "page":
                continue
            values = {child.tag.rpartition("}")[2]: child.text or "" for child in element.iter()}
            if values.get("ns", "0") == "0" and "redirect" not in values:
                fields = {"title": values.get("title", ""), "format": "wiki"}
                yield SourceDocument(
                    f"{part.path}:{values.get('title', '')}", values.get("text", ""), source.title, fields
                )
            element.clear()


def _opened(path: Path) -> IO[Any]:
    openers: dict[str | None, Callable[[Path], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return openers.get(packing_of(path), open_regular)(path)


def _records(part: Part, source: SourceSettings, most: int) -> Iterator[SourceDocument | Fault]:
    for row in read_records(Path(part.path)):
        yield Fault(row.place, "a damaged row") if row.fault is not None else _of_row(row.place, row.value, source)


def _dataset(part: Part, source: SourceSettings, most: int) -> Iterator[SourceDocument | Fault]:
    for row in HuggingFaceSource(part.path).rows():
        yield _of_row(row.place, row.value, source)


_READERS: dict[str, Reader] = (
    dict[str, Reader](dict.fromkeys(RECORD_SUFFIXES, _records))
    | dict.fromkeys(JSON_LINES, _json_lines)
    | dict.fromkeys(HTML, _html)
    | dict.fromkeys(WIKI, _wiki)
)
