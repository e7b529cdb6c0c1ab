"""The one reader of all data: a file, a folder, a catalog name or a Hugging Face data set becomes typed records.

    for record in Corpus("reviews.csv"):
        print(record.text, record.label)

The format is detected from the columns, or given: `Corpus("reviews.csv", columns={"text": "review", "label":
"stars"})`. Rows are read one at a time, so a source of any size needs constant memory (except a JSON list, which is
parsed whole). `DataParts` opens the parts of a recipe's data, each once.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.reading import MAX_DIGITS, sha256_of
from quatrain.core.wording import type_name
from quatrain.data import catalog
from quatrain.data.convert import convert
from quatrain.data.decoding import lines_of, read_text, suffix_of
from quatrain.data.download import DownloadProgress
from quatrain.data.formats import FORMATS, Layout, detect_layout
from quatrain.data.gutenberg import strip_pieces
from quatrain.data.huggingface import HuggingFaceSource
from quatrain.data.records import AnyRecord, Fault, LabelledText, Problems, Row, TaggedTokens
from quatrain.data.rows import RECORD_SUFFIXES, read_records
from quatrain.data.sources import (
    JOINED,
    OnSkipped,
    find_files,
    is_dataset,
    is_record_file,
    parallel_names,
    selected_rows,
    source_names,
)

if TYPE_CHECKING:
    from quatrain.data.settings import DataSettings

SAMPLE = 200
"""Rows from which the format of a file is detected."""

ROW_NUMBER = "#"
"""The name under which a selection has the range of rows."""

Record = TypeVar("Record")

Reader = Callable[[Path], Iterable[str]]
"""Yields the text of a file in chunks."""

_TAG = re.compile(r"O|[BIESLU]-\S+")


class RowSource(Protocol):
    """What a corpus reads rows from: files, parallel files, or a Hugging Face data set."""

    name: str

    def rows(self) -> Iterator[Row]:
        """All rows in order, from the first."""
        ...

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """The layout of the rows. Raises InputError if it cannot be detected."""
        ...

    def layout_of(self, row: Row) -> Layout | None:
        """The layout of the file that a row is from; None if it is that of the whole source."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """A hash of the content; None for a stream, whose content is unknown until it is downloaded."""
        ...


class Corpus:
    """The typed records of a source, in the format that was detected or asked for.

    It can be iterated any number of times. Iteration yields the records before the first fault, reads on to the end,
    then raises InputError with the first 20 faults and the count of all.
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
        piece_words: int | None = None,
    ):
        """Open `source` and detect its format, unless `format` (one of FORMATS) or `columns` (role -> column) is given.

        `subset` and `split` select from a Hugging Face data set (`hf:owner/name`); `streaming` reads it without
        downloading it first. `skipped` is called for each file of a folder that is not read, `progress` during a
        download. `reader` yields the text of a file. `piece_words` cuts labelled texts (`LabelledText.pieces`). Raises
        InputError if the source does not exist or its format is unknown.
        """
        if format is not None and format not in FORMATS:
            raise InputError(f"format {format!r}: allowed are {', '.join(FORMATS)}")
        self.source, self.columns = str(source), columns
        self.origin = _origin(source, subset=subset, split=split, streaming=streaming, skipped=skipped,
                              progress=progress, reader=reader)  # fmt: skip
        self.layout = self.origin.layout(format, columns)
        self.format = self.layout.format
        self.piece_words = piece_words
        if piece_words is not None and self.format != "labelled":
            raise InputError(
                f"data.piece_words: only labelled texts are cut into pieces, and {source} has {self.format}."
            )

    def read_as(self, format: str | None) -> Corpus:
        """The same source in another format; None detects it. Raises InputError as opening does."""
        if format == self.format:
            return self
        other = copy(self)
        other.origin = copy(self.origin)
        other.layout = other.origin.layout(format, self.columns)
        other.format = other.layout.format
        return other

    def __iter__(self) -> Iterator[AnyRecord]:
        return self.read()

    def read(self, start: int = 0) -> Iterator[AnyRecord]:
        """The records from index `start` on."""
        return itertools.islice((record for _, record in self.placed()), start, None)

    def rows(self) -> Iterator[Row]:
        """The raw rows of the source, faulty ones included."""
        return self.origin.rows()

    def convert(self, row: Row) -> list[AnyRecord]:
        """The typed records of one of this source's rows. Raises Fault with all faults of the row."""
        records = convert(row, self.origin.layout_of(row) or self.layout)
        if self.piece_words is None:
            return records
        return [
            piece for record in records if isinstance(record, LabelledText) for piece in record.pieces(self.piece_words)
        ]

    def placed(self) -> Iterator[tuple[str, AnyRecord]]:
        """Each record with its place, such as "file:line". Raises InputError as iteration does."""
        problems = Problems()
        count = 0
        for row in self.rows():
            try:
                records = self.convert(row)
            except Fault as fault:
                for each in fault.all:
                    problems.add(f"{row.place}: {each}")
                continue
            count += len(records)
            if not problems:
                yield from ((row.place, record) for record in records)
        noun = FORMATS[self.format].noun
        if problems:
            raise problems.error(f"{self.origin.name} cannot be read as {noun}")
        if not count:
            raise InputError(f"there are no {noun} in {self.origin.name}")

    def labels(self) -> list[str]:
        """The classes or tags, sorted (integers by value). Reads the whole source once."""
        return label_names(self)

    @property
    def fingerprint(self) -> str | None:
        """A hash of content and layout: equal fingerprints give equal records. None for a stream."""
        content = self.origin.fingerprint
        if content is None:
            return None
        text = f"{content}\n{self.format}\n{sorted(self.layout.parts.items())}\n{self.layout.scores}"
        text += f"\n{self.piece_words}" if self.piece_words is not None else ""
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Corpus({self.source!r}, format={self.format!r})"


class DataParts:
    """The parts of a recipe's data (`source`, `dev`, `test`), each opened, and its format detected, once.

    `cache` keeps examples and tasks for further readers, by a key of the reader's choice.
    """

    def __init__(self, settings: DataSettings, seed: int = 0):
        """`seed` draws the share of the source that is held out."""
        self.settings, self.seed = settings, seed
        self.cache: dict[Any, Any] = {}
        self._opened: dict[tuple[str, str | None], Corpus] = {}

    def name(self, part: str = "source") -> str | None:
        """The source that the settings name for a part."""
        name: str | None = getattr(self.settings, part)
        return name

    def corpus(
        self,
        part: str = "source",
        *,
        format: str | None = None,
        default_format: str | None = None,
        accept: Sequence[str] = (),
    ) -> Corpus:
        """The records of a part in this format, or in that of the settings, or in the one that is detected.

        `default_format` reads what is detected as no format, or as none of `accept`. Raises InputError as `Corpus`.
        """
        settings, source = self.settings, self.name(part)
        format = format or settings.format
        if format is None and default_format is not None:
            try:
                detected = self.corpus(part)
            except InputError:
                return self.corpus(part, format=default_format)
            return detected if detected.format in accept else self.corpus(part, format=default_format)
        key = part, format
        if key not in self._opened:
            opened = next((corpus for (other, _), corpus in self._opened.items() if other == part), None)
            self._opened[key] = opened.read_as(format) if opened is not None else Corpus(
                str(source),
                format=format,
                columns=settings.columns or None,
                subset=settings.subset,
                split=settings.split if part == "source" else getattr(settings, f"{part}_split"),
                streaming=settings.streaming,
                piece_words=settings.piece_words if part == "source" else None,
            )  # fmt: skip
        return self._opened[key]

    def detected_format(self, part: str = "source") -> str | None:
        """The format of the catalog's entries or of the files of a part; None for data sets and what cannot be read."""
        source = str(self.name(part))
        entries = [catalog.find(name) for name in source_names(source)]
        formats = {entry.format for entry in entries if entry is not None}
        if None not in entries:
            return formats.pop() if len(formats) == 1 else None
        try:
            return None if is_dataset(source) else self.corpus(part).format
        except InputError:
            return None

    def held_out_sets(self, *, by_source: bool = False) -> dict[str, tuple[DataParts, str]]:
        """The sets that scores are measured on, by name, each with the part that holds it.

        They are `test`, or else `dev`, or else "held out", the share of the source. With `by_source` each source of
        "a.jsonl + b.jsonl" is a set of its own.
        """
        for part in ("test", "dev"):
            source = self.name(part)
            if source is None:
                continue
            if not by_source:
                return {part: (self, part)}
            return {name: (self._alone(part, name), part) for name in source_names(source)}
        return {"held out": (self, "source")} if self.settings.source is not None and self.settings.validation else {}

    def _alone(self, part: str, name: str) -> DataParts:
        """These parts with one of the sources that a part joins."""
        if name == self.name(part):
            return self
        if (part, name) not in self.cache:
            settings = self.settings.model_copy(update={part: name})
            self.cache[part, name] = DataParts(settings, self.seed)
        alone: DataParts = self.cache[part, name]
        return alone

    def split(
        self, examples: Sequence[Record], group: Callable[[Record], Any] | None = None
    ) -> tuple[list[Record], list[Record]]:
        """Examples to train on, and the random share `validation` that is held out.

        With `group`, examples of one group are on one side, and the share is one of the groups. Nothing is held out
        where the share rounds to nothing.
        """
        keys = list(range(len(examples))) if group is None else [group(example) for example in examples]
        groups = list(dict.fromkeys(keys))
        count = round(self.settings.validation * len(groups))
        if not 0 < count < len(groups):
            return list(examples), []
        order = np.random.default_rng(self.seed).permutation(len(groups))
        held_out = {groups[number] for number in order[:count].tolist()}
        pairs = list(zip(keys, examples, strict=True))
        return [each for key, each in pairs if key not in held_out], [each for key, each in pairs if key in held_out]


def label_names(records: Iterable[AnyRecord]) -> list[str]:
    """The classes of labelled texts, or the tags of words, sorted (integers by value)."""
    names: set[str] = set()
    for record in records:
        if isinstance(record, LabelledText):
            names.add(str(record.label))
        elif isinstance(record, TaggedTokens):
            names.update(record.tags)
    if all(name.isdecimal() and len(name) <= MAX_DIGITS for name in names):
        return sorted(names, key=int)
    return sorted(names)


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
    options = [name for name, value in (("subset", subset), ("split", split)) if value]
    if options:
        raise InputError(f"{source}: {' and '.join(options)} are for data sets of Hugging Face, named hf:owner/name")
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
    """Files of records, or of plain text.

    `selection` restricts some of the files to the rows that match one of its dictionaries {column: value}, of which the
    column "#" is a range of rows.
    """

    def __init__(
        self,
        files: list[Path],
        reader: Reader = read_text,
        selection: Mapping[Path, list[dict[str, str]]] | None = None,
    ):
        self.files, self.reader, self.selection = files, reader, selection or {}
        self.name = str(files[0]) if len(files) == 1 else f"{len(files)} files"
        self.format: str | None = None
        self.columns: Mapping[str, str] | None = None
        self._layouts: dict[str, Layout | None] = {}

    @property
    def fingerprint(self) -> str:
        """A hash of the files' contents in their order; names do not matter."""
        hashes = (f"{sha256_of(path)}{self.selection.get(path, '')}" for path in self.files)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """The layout of the first file with rows; the others have the same format, each with its own columns."""
        self.columns, self._layouts = columns, {}
        layouts = (self._layout_of_file(path, format, columns) for path in self.files)
        layout = next((each for each in layouts if each is not None), None)
        if layout is None:
            layout = Layout(format or "text", {"text": "text"} if format in (None, "text", "lines") else {})
        self.format = layout.format
        if layout.format not in ("text", "lines", "tagged"):
            plain = [path for path in self.files if not is_record_file(path)]
            if plain:
                endings = ", ".join(RECORD_SUFFIXES)
                noun = FORMATS[layout.format].noun
                raise InputError(
                    f"{noun} are read from files with the endings {endings} (or those and .gz, .bz2, .xz)",
                    [f"{path}: plain text, no {noun}" for path in plain],
                )
        return layout

    def _layout_of_file(self, path: Path, format: str | None, columns: Mapping[str, str] | None) -> Layout | None:
        """The layout of one file; None if it has no rows."""
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
        if format is not None and FORMATS[format].varies:
            return Layout(format)  # each row has its own fields
        if not first:
            return None
        if format == "text":
            return Layout("text", {"text": "text"})
        raise InputError(_unknown(path, first[0], format))

    def layout_of(self, row: Row) -> Layout | None:
        """The layout of the row's file."""
        if len(self.files) == 1:
            return None
        path = row.place.rpartition(":")[0]
        if path not in self._layouts:
            self._layouts[path] = self._layout_of_file(Path(path), self.format, self.columns)
        return self._layouts[path]

    def rows(self) -> Iterator[Row]:
        """The rows of all files in order."""
        for path in self.files:
            yield from self.rows_of(path)

    def rows_of(self, path: Path) -> Iterator[Row]:
        """The rows of one file."""
        if is_record_file(path) or self.format == "tagged":
            return self._selected(path, self._table(path))
        if self.format == "lines":
            return _lines(path, self.reader(path))
        return _whole(path, self.reader(path))

    def _selected(self, path: Path, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows of a file that its selection keeps."""
        if path not in self.selection:
            return rows
        return (
            row
            for number, row in enumerate(rows)
            if any(_has(row.value, number, values) for values in self.selection[path])
        )

    def _table(self, path: Path) -> Iterator[Row]:
        # The user's columns are names of a header, or numbers if the table has none.
        header = None if not self.columns else not all(name.isdigit() for name in self.columns.values())
        if suffix_of(path) == ".parquet":
            return read_records(path)
        suffix = None if is_record_file(path) else ".conll"
        return read_records(path, header=header, suffix=suffix, pieces=self.reader(path))


def _has(row: Any, number: int, values: Mapping[str, str]) -> bool:
    """Whether a row, the one with this number in its file, has the values; "#" stands for its number ("0:100")."""
    columns = dict(values)
    first, _, end = columns.pop(ROW_NUMBER, "0:").partition(":")
    if number < int(first) or (end and number >= int(end)):
        return False
    return not columns or (
        isinstance(row, Mapping) and all(row.get(column) == value for column, value in columns.items())
    )


def _lines(path: Path, pieces: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines_of(pieces), 1):
        if line.strip():
            yield Row(f"{path}:{number}", line.rstrip("\n"))


def _whole(path: Path, pieces: Iterable[str]) -> Iterator[Row]:
    text = "".join(strip_pieces(iter(pieces)))
    if text.strip():
        yield Row(f"{path}:1", text)


def looks_tagged(pieces: Iterable[str]) -> bool:
    """Whether a plain text begins like a CoNLL file: every line has columns, the last one is O, B-… or I-…."""
    head = next(iter(pieces), "")[:65536]
    content = [line for line in head.split("\n")[:-1] if line.strip() and not line.startswith("-DOCSTART-")]
    rows = [line.split() for line in content[:SAMPLE]]
    alike = sum(len(row) == len(rows[0]) > 1 and _TAG.fullmatch(row[-1]) is not None for row in rows)
    return len(rows) >= 3 and alike > 0.9 * len(rows)


def _unknown(path: Path, row: Any, format: str | None) -> str:
    """The message for a file whose columns match no format."""
    if not isinstance(row, Mapping):
        return f"{path}: its rows are not objects with fields but {type_name(row)}"
    names = ", ".join(repr(name) for name in list(row)[:12])
    what = f"are not those of {FORMATS[format].noun}" if format else "match no format"
    first = next(iter(row), "…")
    hint = ""
    if suffix_of(path) in (".csv", ".tsv") and not first.isdigit():
        hint = ' If the first row is data and not a header, number them: {text = "1", label = "2"};'
    return (
        f'{path}: the columns {names} {what}. Name them, such as data.columns = {{text = "…", label = "…"}} in a '
        f"recipe or --columns text=…,label=… for `data check`.{hint} docs/data.md lists the roles of each format"
    )


class ParallelSource:
    """Two parallel text files: line i of the first is the source of line i of the second."""

    def __init__(self, name: str, first: list[Path], second: list[Path], reader: Reader = read_text):
        if len(first) != 1 or len(second) != 1:
            raise InputError(f"{name}: the names in braces must be two files, not folders")
        self.name, self.files, self.reader = name, [*first, *second], reader

    @property
    def fingerprint(self) -> str:
        """A hash of both files' contents."""
        return hashlib.sha256("".join(sha256_of(path) for path in self.files).encode()).hexdigest()

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """Text pairs: source in the first file, target in the second."""
        if format not in (None, "pair"):
            raise InputError(f"{self.name}: two parallel files are pairs of texts, not {FORMATS[format].noun}")
        return Layout("pair", {"source": "source", "target": "target"})

    def layout_of(self, row: Row) -> Layout | None:
        """None: all rows have the same layout."""
        return None

    def rows(self) -> Iterator[Row]:
        """One pair per line; a fault if one file has more lines."""
        sides = (lines_of(self.reader(path)) for path in self.files)
        for number, (source, target) in enumerate(itertools.zip_longest(*sides), 1):
            place = f"{self.files[0]}:{number}"
            if source is None or target is None:
                short, long = (0, 1) if source is None else (1, 0)
                fault = f"line {number} is the first that {self.files[short]} does not have; give both as many lines"
                yield Row(f"{self.files[long]}:{number}", fault=fault)
                return
            yield Row(place, {"source": source.rstrip("\n"), "target": target.rstrip("\n")})
