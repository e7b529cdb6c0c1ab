"""Reads CSV and TSV tables. Delimiter, quoting and header are detected from the first rows.

A comma is preferred to other delimiters. TSV has no quotes (as IANA defines text/tab-separated-values), unless only
quoting gives all rows the same number of fields.
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

# A column name has at most four words and does not end like a sentence.
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
class Dialect:
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
    """How well a dialect fits the first rows.

    `even`: all have as many fields as the first; `share`: the share that has; `named`: the first looks like a header.
    """

    even: bool
    share: float
    named: bool
    columns: int

    @property
    def rank(self) -> tuple[bool, float, bool, int]:
        return self.even, self.share, self.named, self.columns


def detect_dialect(head: str, *, tabs: bool) -> Dialect:
    """The dialect of a table that begins with `head`; `tabs`: its suffix is that of TSV."""
    lines, cut = _whole_lines(head)
    plain = Dialect("\t", "") if tabs else Dialect()
    fits = {dialect: _fit(dialect, lines, cut) for dialect in (plain, *_others(head, tabs=tabs))}
    if tabs:
        quoted = Dialect("\t", '"')
        return quoted if _needs_quotes(fits[plain], fits[quoted], lines) else plain
    usual = fits.pop(plain)
    if usual.even:
        # rows such as 'a','b' are even in the plain dialect too, with the quotes as part of the fields
        single = Dialect(",", "'")
        return single if single in fits and fits[single].even and _is_quoted(lines, single) else plain
    several = usual.columns > 1 and usual.share >= 0.5
    likely = [
        dialect
        for dialect, fit in fits.items()
        if fit.columns > 1 and (fit.even or (not several and fit.named and fit.share >= 0.5))
    ]
    return max(likely, key=lambda dialect: fits[dialect].rank, default=plain)


def _whole_lines(head: str) -> tuple[list[str], bool]:
    """The complete lines of a table's beginning, and whether more follow."""
    lines = list(lines_of([head[:SAMPLE_SIZE]]))
    cut = len(head) >= SAMPLE_SIZE
    return (lines[:-1] if cut and len(lines) > 1 else lines), cut


def _others(head: str, *, tabs: bool) -> Iterator[Dialect]:
    """The dialects to try besides the default one."""
    if tabs:
        yield Dialect("\t", '"')
        return
    for delimiter in DELIMITERS:
        if delimiter not in head:
            continue
        if delimiter != ",":
            yield Dialect(delimiter)
        if '\\"' in head:
            yield Dialect(delimiter, '"', "\\")
        if re.search(rf"(^|{re.escape(delimiter)})'", head, re.MULTILINE):
            yield Dialect(delimiter, "'")
        if delimiter == "\t":
            yield Dialect(delimiter, "")


def _fit(dialect: Dialect, lines: Sequence[str], cut: bool) -> _Fit:
    rows, whole = sample(dialect, lines, cut)
    if not rows:
        return _Fit(False, 0.0, False, 0)
    columns = len(rows[0])
    share = sum(len(row) == columns for row in rows) / len(rows)
    named = all(_NAME.fullmatch(cell.strip()) for cell in rows[0])
    # any text without the delimiter has even rows of one column, and a single row is always even
    even = whole and share == 1 and columns > 1 and (len(rows) > 1 or named)
    return _Fit(even, share if whole else share / 2, named, columns)


def sample(dialect: Dialect, lines: Iterable[str], cut: bool = False) -> tuple[list[list[str]], bool]:
    """The first rows, without comments and empty lines, and whether all of them are valid.

    `cut`: the lines are the beginning of a table, so that a quoted field may end after them.
    """
    rows: list[list[str]] = []
    try:
        for row in dialect.reader(lines):
            if row and not (not rows and row[0].startswith("# ")):
                rows.append(row)
            if len(rows) >= SAMPLE_ROWS:
                break
    except csv.Error as error:
        return rows, cut and "unexpected end" in str(error)
    return rows, True


def _needs_quotes(plain: _Fit, quoted: _Fit, lines: Sequence[str]) -> bool:
    """Whether a table with tabs has quotes, as spreadsheets and data frames write it."""
    if not quoted.even or not any('"' in line for line in lines):
        return False
    if not plain.even or _is_quoted(lines, Dialect("\t", '"')):
        return True
    # doubled quotes inside a field occur only in quoted fields
    cells = (cell for row in sample(Dialect("\t", ""), lines)[0] for cell in row if cell[:1] == cell[-1:] == '"')
    return any('""' in cell[1:-1] for cell in cells)


def _is_quoted(lines: Sequence[str], dialect: Dialect) -> bool:
    """Whether the first row, or every row, begins and ends with a quote."""
    raw = [line.strip() for line in lines[:SAMPLE_ROWS] if line.strip()]
    marked = [len(line) > 1 and line[0] == line[-1] == dialect.quote for line in raw]
    between = f"{dialect.quote}{dialect.delimiter}{dialect.quote}"
    return bool(raw) and marked[0] and between in raw[0] and (all(marked) or _NAME.match(raw[0][1:]) is not None)


def names_columns(rows: Sequence[Sequence[str]], known: Callable[[Sequence[str]], bool]) -> bool:
    """Whether the first row is a header. `known` tells if names are the columns of a known format.

    A row of name-like cells is a header if one of them is a usual column name, or if the values below differ in kind:
    repeated labels without that name, numbers, or sentences.
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
    """Whether a column has few distinct short values that repeat, as labels do."""
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
    """The rows of a table as dictionaries. A row with a wrong number of fields becomes a Row with a fault.

    `header`: whether the first row names the columns (None: detect it). Without a header the columns are "1", "2", …; a
    column with an empty name is called by its number. A duplicate name is a fault of the whole table.
    """
    pieces = iter(text)
    head = ""
    for piece in pieces:
        head += piece
        if len(head) >= SAMPLE_SIZE:
            break
    source = itertools.chain([head], pieces)
    start = 1
    if separator := _SEPARATOR.match(head):  # Excel's line "sep=;", which gives the delimiter
        head, start = head[separator.end() :], 2
        dialect = Dialect(separator[1])
        source = itertools.chain([head], pieces)
    else:
        dialect = detect_dialect(head, tabs=tabs)
    if header is None:
        rows, _ = sample(dialect, _whole_lines(head)[0])
        header = bool(rows) and names_columns(rows, known)
    yield from _rows(path, dialect, source, start, header)


def _rows(path: Path, dialect: Dialect, source: Iterable[str], start: int, header: bool) -> Iterator[Row]:
    names: list[str] | None = None
    first = ""
    before = start - 1
    reader = dialect.reader(lines_of(source, path))
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
                    duplicates = [name for name, count in Counter(names).items() if count > 1]
                    if duplicates:
                        fault = f"the header has {', '.join(map(repr, duplicates))} more than once; rename columns"
                        yield Row(place, fault=fault)
                        return
                    continue
                names, first = [str(number) for number in range(1, len(row) + 1)], "the first row"
            if len(row) != len(names):
                yield Row(place, fault=f"{len(row)} fields, {first} has {len(names)}; {_hint(dialect)}")
            else:
                yield Row(place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        yield Row(f"{path}:{start}", fault=f"not valid CSV ({error}); the rows after it cannot be read")


def _hint(dialect: Dialect) -> str:
    if not dialect.quote:
        return "a tab separates fields; remove it from the text"
    return f"a field with {DELIMITERS.get(dialect.delimiter, repr(dialect.delimiter))} needs quotes"
