"""One reader for all data: a file, a folder, a catalog name or a Hugging Face data set becomes typed records.

    for record in Corpus("reviews.csv"):
        print(record.text, record.label)

What the data is follows from its columns and can be said instead: `Corpus("reviews.csv", columns={"text": "review",
"label": "stars"})`. Rows come one at a time, so that a source of any size takes a constant amount of memory (a JSON
list is read whole).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quatrain.core.errors import InputError
from quatrain.core.reading import MAX_DIGITS
from quatrain.data.convert import convert
from quatrain.data.decoding import read_text, suffix_of
from quatrain.data.download import DownloadProgress, sha256_of
from quatrain.data.formats import FORMATS, WORDS, Layout, detect_layout
from quatrain.data.gutenberg import strip_pieces
from quatrain.data.huggingface import HuggingFaceSource, is_dataset
from quatrain.data.records import AnyRecord, Fault, LabelledText, Problems, Row, TaggedTokens
from quatrain.data.rows import RECORD_SUFFIXES, lines, read_records
from quatrain.data.sources import (
    JOINED,
    OnSkipped,
    find_files,
    is_record_file,
    parallel_names,
    selected_rows,
    source_names,
)

if TYPE_CHECKING:
    from quatrain.data.settings import DataSettings

#: Rows that tell the format of a file.
SAMPLE = 200

#: Gives the text of a file in pieces.
Reader = Callable[[Path], Iterable[str]]

_TAG = re.compile(r"O|[BIESLU]-\S+")


class RowSource(Protocol):
    """Where rows come from."""

    name: str

    def rows(self) -> Iterator[Row]:
        """Every row, in order, from the first."""
        ...

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """What the rows are. Raises InputError where that cannot be told."""
        ...

    def layout_of(self, record: Row) -> Layout | None:
        """The layout of a row whose file has columns of its own; None: as the first."""
        ...

    @property
    def mark(self) -> str | None:
        """What identifies the content; None where it cannot be known without reading it from a network."""
        ...


class Corpus:
    """The typed records of a source, with the format that was found or asked for.

    Iterating gives records from the first, as often as is asked. Raises InputError, with the first 20 faults and the
    count of all, once everything that was whole before the first fault has been given.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        subset: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        skipped: OnSkipped | None = None,
        progress: DownloadProgress | None = None,
        reader: Reader = read_text,
    ):
        """Open `source`; `format` is one of FORMATS and `columns` maps its parts to columns, where they are not to be
        found by themselves. `subset` and `split` are for data sets of Hugging Face (`hf:owner/name`); `streaming` reads
        those as they are needed, as files are in any case.

        `reader` gives the text of a file. Raises InputError for what is not there, or is of no known format.
        """
        if format is not None and format not in FORMATS:
            raise InputError(f"format {format!r}: allowed are {', '.join(FORMATS)}")
        self.source = str(source)
        self.origin = _origin(source, subset=subset, split=split, streaming=streaming, skipped=skipped,
                              progress=progress, reader=reader)  # fmt: skip
        self.layout = self.origin.layout(format, columns)
        self.format = self.layout.format

    @classmethod
    def of(cls, data: DataSettings, **options: Any) -> Corpus:
        """The corpus that a recipe's data settings name. Raises InputError where they name no source."""
        if data.source is None:
            raise InputError(
                "data.source: nothing is named; give a file, a folder, a name of the catalog or hf:owner/name"
            )
        names = ("format", "columns", "subset", "split", "streaming")
        return cls(data.source, **{name: getattr(data, name) for name in names}, **options)

    def __iter__(self) -> Iterator[AnyRecord]:
        return self.read()

    def read(self, start: int = 0) -> Iterator[AnyRecord]:
        """The records from number `start` on."""
        return itertools.islice((record for _, record in self._placed()), start, None)

    def placed(self) -> Iterator[tuple[str, AnyRecord]]:
        """Each record with the place of its row; raises as iterating does."""
        return self._placed()

    def rows(self) -> Iterator[Row]:
        """The rows as the source has them, those with faults too."""
        return self.origin.rows()

    def convert(self, record: Row) -> list[AnyRecord]:
        """The typed records of one of this source's rows. Raises Fault with all that is wrong in it."""
        return convert(record, self.origin.layout_of(record) or self.layout)

    def _placed(self) -> Iterator[tuple[str, AnyRecord]]:
        problems = Problems()
        count = 0
        for record in self.rows():
            try:
                found = self.convert(record)
            except Fault as fault:
                for each in fault.all:
                    problems.add(f"{record.place}: {each}")
                continue
            count += len(found)
            if not problems:
                yield from ((record.place, each) for each in found)
        what = WORDS[self.format]
        if problems:
            raise problems.error(f"{self.origin.name} cannot be read as {what}")
        if not count:
            raise InputError(f"there are no {what} in {self.origin.name}")

    def labels(self) -> list[str]:
        """The names of the classes or tags, sorted; whole numbers by their value. Reads everything once."""
        return label_names(self)

    @property
    def mark(self) -> str | None:
        """A hash of the content and of how it is read: equal marks give equal records. None for a stream."""
        content = self.origin.mark
        if content is None:
            return None
        read = f"{content}\n{self.format}\n{sorted(self.layout.parts.items())}\n{self.layout.scores}"
        return hashlib.sha256(read.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Corpus({self.source!r}, format={self.format!r})"


def label_names(records: Iterable[AnyRecord]) -> list[str]:
    """The classes of labelled texts, or the tags of words, sorted; whole numbers by their value."""
    found: set[str] = set()
    for record in records:
        if isinstance(record, LabelledText):
            found.add(str(record.label))
        elif isinstance(record, TaggedTokens):
            found.update(record.tags)
    if all(name.isdecimal() and len(name) <= MAX_DIGITS for name in found):
        return sorted(found, key=int)
    return sorted(found)


def _origin(
    source: str | Path,
    *,
    subset: str | None,
    split: str | None,
    streaming: bool,
    skipped: OnSkipped | None,
    progress: DownloadProgress | None,
    reader: Reader,
) -> RowSource:
    if is_dataset(source):
        return HuggingFaceSource(str(source), subset=subset, split=split, streaming=streaming)
    given = [name for name, value in (("subset", subset), ("split", split)) if value]
    if given:
        raise InputError(f"{source}: {' and '.join(given)} are for data sets of Hugging Face, named hf:owner/name")
    names = source_names(source)
    if len(names) > 1 and any(is_dataset(name) or parallel_names(name) for name in names):
        raise InputError(
            f"{source}: files and names of the catalog are joined by{JOINED}alone, no data sets of Hugging Face and no "
            "files that go line by line"
        )
    sides = parallel_names(source)
    if sides is not None:
        first, second = (find_files(side, progress=progress) for side in sides)
        return ParallelSource(str(source), first, second, reader)
    return FileSource(find_files(source, skipped=skipped, progress=progress), reader, selected_rows(source))


class FileSource:
    """Files of records, or of plain text. Of the files in `wanted` those rows alone are read that have one of its
    dictionaries' values in their columns.
    """

    def __init__(
        self,
        files: list[Path],
        reader: Reader = read_text,
        wanted: Mapping[Path, list[dict[str, str]]] | None = None,
    ):
        self.files, self.reader, self.wanted = files, reader, wanted or {}
        self.name = str(files[0]) if len(files) == 1 else f"{len(files)} files"
        self.format: str | None = None
        self.columns: Mapping[str, str] | None = None
        self._layouts: dict[str, Layout | None] = {}

    @property
    def mark(self) -> str:
        """Of the contents, in their order; names do not count."""
        marks = (f"{sha256_of(path)}{self.wanted.get(path, '')}" for path in self.files)
        return hashlib.sha256("".join(marks).encode()).hexdigest()

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """That of the first file; the others are of the same format, each with its own columns."""
        self.columns = columns
        found: Layout | None = None
        for path in self.files:
            found = self._layout_of_file(path, format, columns)
            if found is not None:
                break
        if found is None:
            found = Layout(format or "text", {"text": "text"} if format in (None, "text", "lines") else {})
        self.format = found.format
        if found.format not in ("text", "lines", "tagged"):
            plain = [path for path in self.files if not is_record_file(path)]
            if plain:
                endings = ", ".join(RECORD_SUFFIXES)
                what = WORDS[found.format]
                raise InputError(
                    f"{what} are read from files with the endings {endings} (or those and .gz, .bz2, .xz)",
                    [f"{path}: plain text, no {what}" for path in plain],
                )
        return found

    def _layout_of_file(self, path: Path, format: str | None, columns: Mapping[str, str] | None) -> Layout | None:
        """A file's layout; None where it has no row."""
        if not is_record_file(path):
            if format in ("text", "lines"):
                return Layout(format)
            tagged = format == "tagged" or (format is None and looks_tagged(self.reader(path)))
            if not tagged:
                return Layout(format or "text")
        sampled = [record.value for record in itertools.islice(self._table(path), SAMPLE)]
        first = [value for value in sampled if value is not None]
        layout = detect_layout(first, columns=columns, format=format)
        if layout is not None:
            return layout
        if format in ("chat", "preference", "prompts"):
            return Layout(format)  # each row is told by its own fields
        if not first:
            return None
        if format == "text":
            return Layout("text", {"text": "text"})
        raise InputError(_unknown(path, first[0], format))

    def layout_of(self, record: Row) -> Layout | None:
        """The layout of the row's file."""
        if len(self.files) == 1:
            return None
        path = record.place.rpartition(":")[0]
        if path not in self._layouts:
            self._layouts[path] = self._layout_of_file(Path(path), self.format, self.columns)
        return self._layouts[path]

    def rows(self) -> Iterator[Row]:
        """The rows of all files."""
        for path in self.files:
            yield from self.rows_of(path)

    def rows_of(self, path: Path) -> Iterator[Row]:
        """The rows of one file."""
        if is_record_file(path) or self.format == "tagged":
            return self._chosen(path, self._table(path))
        if self.format == "lines":
            return _lines(path, self.reader(path))
        return _whole(path, self.reader(path))

    def _chosen(self, path: Path, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows that are wanted of a file."""
        if path not in self.wanted:
            return rows
        wanted = self.wanted[path]
        return (row for row in rows if any(_has(row.value, values) for values in wanted))

    def _table(self, path: Path) -> Iterator[Row]:
        # columns that a user names are those of a header, or numbers where there is none
        header = None if not self.columns else not all(name.isdigit() for name in self.columns.values())
        if suffix_of(path) == ".parquet":
            return read_records(path)
        suffix = None if is_record_file(path) else ".conll"
        return read_records(path, header=header, suffix=suffix, pieces=self.reader(path))


def _has(row: Any, values: Mapping[str, str]) -> bool:
    return isinstance(row, Mapping) and all(row.get(column) == value for column, value in values.items())


def _lines(path: Path, pieces: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines(pieces), 1):
        if line.strip():
            yield Row(f"{path}:{number}", line.rstrip("\n"))


def _whole(path: Path, pieces: Iterable[str]) -> Iterator[Row]:
    text = "".join(strip_pieces(iter(pieces)))
    if text.strip():
        yield Row(f"{path}:1", text)


def looks_tagged(pieces: Iterable[str]) -> bool:
    """Whether a plain text begins like CoNLL's files: columns on every line, the last of them O, B-… or I-…."""
    head = next(iter(pieces), "")[:65536]
    said = [line for line in head.split("\n")[:-1] if line.strip() and not line.startswith("-DOCSTART-")]
    rows = [line.split() for line in said[:SAMPLE]]
    alike = sum(len(row) == len(rows[0]) > 1 and _TAG.fullmatch(row[-1]) is not None for row in rows)
    return len(rows) >= 3 and alike > 0.9 * len(rows)


def _unknown(path: Path, row: Any, format: str | None) -> str:
    """What is said of a file whose columns tell no format."""
    if not isinstance(row, Mapping):
        return f"{path}: its rows are {type(row).__name__}, must be objects with fields"
    names = ", ".join(repr(name) for name in list(row)[:12])
    what = f"do not say which are {WORDS[format]}" if format else "are those of no format that is known"
    first = next(iter(row), "…")
    hint = ""
    if suffix_of(path) in (".csv", ".tsv") and not first.isdigit():
        hint = ' If the first row is data and no header, number them: {text = "1", label = "2"};'
    return (
        f'{path}: the columns {names} {what}. Name them, such as data.columns = {{text = "…", label = "…"}} in a '
        f"recipe or --columns text=…,label=… for `data check`.{hint} docs/data.md lists the parts of each format"
    )


class ParallelSource:
    """Two texts whose lines belong together: line i of one is line i of the other in another language."""

    def __init__(self, name: str, first: list[Path], second: list[Path], reader: Reader = read_text):
        if len(first) != 1 or len(second) != 1:
            raise InputError(f"{name}: the names in braces must be those of two files, not of folders")
        self.name, self.files, self.reader = name, [*first, *second], reader

    @property
    def mark(self) -> str:
        """Of both contents."""
        return hashlib.sha256("".join(sha256_of(path) for path in self.files).encode()).hexdigest()

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """Pairs, from the first file's text to the second's."""
        if format not in (None, "pair"):
            raise InputError(f"{self.name}: two files line by line are pairs of texts, not {WORDS[format]}")
        return Layout("pair", {"source": "source", "target": "target"})

    def layout_of(self, record: Row) -> Layout | None:
        """All rows have one layout."""
        return None

    def rows(self) -> Iterator[Row]:
        """A pair for each line; a fault where one text has more lines."""
        sides = (lines(self.reader(path)) for path in self.files)
        for number, (source, target) in enumerate(itertools.zip_longest(*sides), 1):
            place = f"{self.files[0]}:{number}"
            if source is None or target is None:
                short, long = (0, 1) if source is None else (1, 0)
                fault = f"line {number} is the first that {self.files[short]} does not have; give both as many lines"
                yield Row(f"{self.files[long]}:{number}", fault=fault)
                return
            yield Row(place, {"source": source.rstrip("\n"), "target": target.rstrip("\n")})
