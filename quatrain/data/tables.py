"""Reads CSV and TSV tables: detects delimiter, quoting and header from the beginning of a table.

A comma is preferred to other delimiters. TSV has no quotes (IANA text/tab-separated-values defines none), unless only
quotes give all rows the same number of fields.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quatrain.data.decoding import MAX_LINE, lines_of
from quatrain.data.records import Row

SAMPLE_ROWS = 200
"""Rows from which the dialect of a table is detected."""

SAMPLE_SIZE = 256 * 1024
"""Limit on the characters of these rows."""

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}

# A column name: a few words, not a sentence.
_NAME = re.compile(r"[^\W\d][\w\-()/%#:.]*( [\w\-()/%#:.]+){0,3}(?<![.:])")
_USUAL = frozenset(
    """text texts sentence review content comment tweet document question title body subject message summary article
    label labels class category target tag tags sentiment score rating stars topic intent answer answers context
    source prompt response output input instruction id idx index key name date time user author url lang language
    split x y text1 text2 sentence1 sentence2 premise hypothesis query description""".split()
)
"""Usual column names, which are unlikely to be values."""

_SPACE = " \t\n\r\v\f\u00a0\ufeff"
_SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """The dialect of a table: delimiter, quote character ("" for none) and escape character."""

    delimiter: str = ","
    quote: str = '"'
    escape: str | None = None

    def reader(self, source: Iterable[str]) -> Iterator[list[str]]:
        """A csv reader with this dialect."""
        csv.field_size_limit(MAX_LINE)
        if not self.quote:
            return csv.reader(source, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
        return csv.reader(
            source,
            delimiter=self.delimiter,
            quotechar=self.quote,
            escapechar=self.escape,
            doublequote=self.escape is None,
            strict=True,
        )


@dataclass(frozen=True)
class _Fit:
    """How well a dialect fits: do all rows have as many fields as the first, and what share of them does."""

    even: bool
    share: float
    named: bool
    columns: int

    @property
    def rank(self) -> tuple[bool, float, bool, int]:
        return self.even, self.share, self.named, self.columns


def shape_of(head: str, *, tabs: bool) -> Shape:
    """The dialect of a table that begins with `head`; `tabs` if its suffix is that of TSV."""
    lines, cut = _whole_lines(head)
    plain = Shape("\t", "") if tabs else Shape()
    fits = {shape: _fit(shape, lines, cut) for shape in (plain, *_others(head, tabs=tabs))}
    if tabs:
        quoted = Shape("\t", '"')
        return quoted if _needs_quotes(fits[plain], fits[quoted], lines) else plain
    usual = fits.pop(plain)
    if usual.even:
        # 'a','b' reads as even rows too, with the quotes in the fields
        single = Shape(",", "'")
        return single if single in fits and fits[single].even and _is_quoted(lines, single) else plain
    several = usual.columns > 1 and usual.share >= 0.5
    likely = [
        shape
        for shape, fit in fits.items()
        if fit.columns > 1 and (fit.even or (not several and fit.named and fit.share >= 0.5))
    ]
    return max(likely, key=lambda shape: fits[shape].rank, default=plain)


def _whole_lines(head: str) -> tuple[list[str], bool]:
    """The lines of a table's beginning, and whether more follow."""
    found = list(lines_of([head[:SAMPLE_SIZE]]))
    cut = len(head) >= SAMPLE_SIZE
    return (found[:-1] if cut and len(found) > 1 else found), cut


def _others(head: str, *, tabs: bool) -> Iterator[Shape]:
    """The possible dialects of a table, the usual one excluded."""
    if tabs:
        yield Shape("\t", '"')
        return
    for delimiter in DELIMITERS:
        if delimiter not in head:
            continue
        if delimiter != ",":
            yield Shape(delimiter)
        if '\\"' in head:
            yield Shape(delimiter, '"', "\\")
        if re.search(rf"(^|{re.escape(delimiter)})'", head, re.MULTILINE):
            yield Shape(delimiter, "'")
        if delimiter == "\t":
            yield Shape(delimiter, "")


def _fit(shape: Shape, lines: Sequence[str], cut: bool) -> _Fit:
    rows, whole = sample(shape, lines, cut)
    if not rows:
        return _Fit(False, 0.0, False, 0)
    columns = len(rows[0])
    share = sum(len(row) == columns for row in rows) / len(rows)
    named = all(_NAME.fullmatch(cell.strip()) for cell in rows[0])
    # one column is even in any text that lacks the delimiter, and so is one row
    even = whole and share == 1 and columns > 1 and (len(rows) > 1 or named)
    return _Fit(even, share if whole else share / 2, named, columns)


def sample(shape: Shape, lines: Iterable[str], cut: bool = False) -> tuple[list[list[str]], bool]:
    """The first rows without comments and empty lines, and whether they could all be read.

    `cut`: more lines follow, so that a field may end behind them.
    """
    rows: list[list[str]] = []
    try:
        for row in shape.reader(lines):
            if row and not (not rows and row[0].startswith("# ")):
                rows.append(row)
            if len(rows) >= SAMPLE_ROWS:
                break
    except csv.Error as error:
        return rows, cut and "unexpected end" in str(error)
    return rows, True


def _needs_quotes(plain: _Fit, quoted: _Fit, lines: Sequence[str]) -> bool:
    """Whether a table with tabs is quoted all the same, as spreadsheets and data frames write it."""
    if not quoted.even or not any('"' in line for line in lines):
        return False
    if not plain.even or _is_quoted(lines, Shape("\t", '"')):
        return True
    # a quote within a quoted field is doubled, which nobody writes otherwise
    cells = (cell for row in sample(Shape("\t", ""), lines)[0] for cell in row if cell[:1] == cell[-1:] == '"')
    return any('""' in cell[1:-1] for cell in cells)


def _is_quoted(lines: Sequence[str], shape: Shape) -> bool:
    """Whether the first row, or every row, begins and ends with a quote."""
    raw = [line.strip() for line in lines[:SAMPLE_ROWS] if line.strip()]
    marked = [len(line) > 1 and line[0] == line[-1] == shape.quote for line in raw]
    between = f"{shape.quote}{shape.delimiter}{shape.quote}"
    return bool(raw) and marked[0] and between in raw[0] and (all(marked) or _NAME.match(raw[0][1:]) is not None)


def names_columns(rows: Sequence[Sequence[str]], known: Callable[[Sequence[str]], bool]) -> bool:
    """Whether the first of some rows is a header. `known` says whether some names tell a format.

    Cells like names are a header where one of them is a usual name of columns, or where the values below are of another
    kind: labels that repeat themselves without it, numbers, or sentences.
    """
    first, others = [cell.strip() for cell in rows[0]], rows[1:]
    if known(first):
        return True
    if not all(_NAME.fullmatch(cell) for cell in first if cell) or not any(first):
        return False
    if not others:
        return True
    columns = [[row[place].strip() for row in others if place < len(row)] for place in range(len(first))]
    repeated = [_repeats(column) for column in columns]
    if any(repeats and name in column for name, column, repeats in zip(first, columns, repeated, strict=True)):
        return False
    if any("_".join(name.casefold().split()) in _USUAL for name in first) or any(repeated):
        return True
    if any(column and all(map(_is_number, column)) for column in columns):
        return True
    alike = sum(all(_NAME.fullmatch(cell.strip()) for cell in row) for row in others)
    return alike * 2 < len(others)


def _repeats(values: Sequence[str]) -> bool:
    """Whether a column holds few short values, again and again: labels."""
    distinct = set(values)
    return bool(values) and max(map(len, distinct)) <= 40 and len(values) > len(distinct) <= max(2, len(values) // 5)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def read_table(
    path: Path,
    text: Iterable[str],
    *,
    tabs: bool,
    header: bool | None,
    known: Callable[[Sequence[str]], bool],
) -> Iterator[Row]:
    """The rows of a table as dictionaries. A row with another number of fields comes as a Record with a fault.

    `header` says whether the first row names the columns (None: the beginning tells); without names they are "1", "2",
    …. A column without a name has its number. A name that is there twice is a fault of the whole table.
    """
    pieces = iter(text)
    head = ""
    for piece in pieces:
        head += piece
        if len(head) >= SAMPLE_SIZE:
            break
    source = itertools.chain([head], pieces)
    start = 1
    if said := _SEPARATOR.match(head):  # Excel's own line, which names the delimiter
        head, start = head[said.end() :], 2
        shape = Shape(said[1])
        source = itertools.chain([head], pieces)
    else:
        shape = shape_of(head, tabs=tabs)
    if header is None:
        rows, _ = sample(shape, _whole_lines(head)[0])
        header = bool(rows) and names_columns(rows, known)
    yield from _rows(path, shape, source, start, header)


def _rows(path: Path, shape: Shape, source: Iterable[str], start: int, header: bool) -> Iterator[Row]:
    names: list[str] | None = None
    first = ""
    before = start - 1
    reader = shape.reader(lines_of(source, path))
    try:
        for row in reader:
            place, start = f"{path}:{start}", reader.line_num + before + 1  # type: ignore[attr-defined]
            if not row or (names is None and row[0].startswith("# ")):
                continue
            if names is None:
                if header:
                    names, first = (
                        [cell.strip(_SPACE) or str(number) for number, cell in enumerate(row, 1)],
                        "the header",
                    )
                    twice = [name for name, count in Counter(names).items() if count > 1]
                    if twice:
                        said = ", ".join(map(repr, twice))
                        yield Row(place, fault=f"the header has {said} more than once; give each column its name")
                        return
                    continue
                names, first = [str(number) for number in range(1, len(row) + 1)], "the first row"
            if len(row) != len(names):
                yield Row(place, fault=f"{len(row)} fields, {first} has {len(names)}; {_hint(shape)}")
            else:
                yield Row(place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        yield Row(f"{path}:{start}", fault=f"not valid CSV ({error}); the rows behind it cannot be read")


def _hint(shape: Shape) -> str:
    if not shape.quote:
        return "a tab parts fields, take it out of the text"
    return f"a field with {DELIMITERS.get(shape.delimiter, repr(shape.delimiter))} needs quotes"
