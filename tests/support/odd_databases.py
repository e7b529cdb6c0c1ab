"""Random databases as people really have them: any value in any column, odd names, and schemas that contradict it."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

NAMES = (
    "name", "id", "title", "select", "order", "Group", "it's", 'say "x"', "line\nbreak", "tab\there", "größe", "😀",
    "", " ", "a b", "%s{v}", "{0}", "\\1", "x" * 200, "\x1b[31mred", "unit_price", "total", "created_at",
    "year", "email", "日本", "_", "--", ";", "123", "rowid", "OrderID", "values", "null", "is_open", "person_id", "s",
    "country name", "\u202eabc",
)  # fmt: skip
TYPES = ("", "INTEGER", "TEXT", "REAL", "BLOB", "DATE", "VARCHAR(255)", "BOOLEAN", "JSON", "DECIMAL(10, 2)", "no such")
TEXTS = (
    "", " ", "Paris", "New York", "O'Brien", 'the "best"', "1", "1.5", "-3", "1e400", "NaN", "NULL", "true", "Y", "N",
    "2024-01-02", "2024-1-2", "02.01.2024", "2024-02-30", "2024-01-02 10:11:12", "2024-01-02T10:11:12Z", "0000-00-00",
    "9999-12-31", "-4713-11-24", "a\nb", "\x00", "a\x00b", "\x1b[2J", "😀", "é" * 50, "x" * 5000, "{v}", "{np}", "%",
    "\\", "٣", "１２", "²", "Ⅷ", "x y z", "and", "ﬀ", "\u202e", "\u2028",
)  # fmt: skip
VALUES = (
    st.none()
    | st.integers(-5, 60)
    | st.sampled_from([-(2**63), 2**63 - 1, 10**12, 10**15, 1 << 53])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([0.1, 2.5, 1e300, -1e-300, 1e15 + 0.5, float("inf"), float("-inf"), 5e-324, -0.0])
    | st.sampled_from(TEXTS)
    | st.binary(max_size=6)
    | st.text(max_size=12)
)
KINDS = (
    st.just(VALUES),
    st.just(VALUES),
    st.just(st.none()),
    st.just(st.floats(allow_nan=False)),
    st.just(st.integers(0, 40)),
    st.just(st.integers(0, 1)),
    st.just(st.sampled_from(["Paris", "Rome", "Oslo"])),
    st.just(st.sampled_from(["2024-01-02", "2023-05-06", "2021-12-31", "0001-01-01"])),
    st.just(st.from_regex(r"(19|20|99|00)\d\d-0[1-9]-[12]\d", fullmatch=True)),
    st.just(st.text("abcdefg hij", min_size=1, max_size=9)),
)


@dataclass(frozen=True)
class OddTable:
    """One table: names and types of columns, constraints as SQL, rows."""

    name: str
    columns: tuple[tuple[str, str], ...]
    constraints: tuple[str, ...]
    suffix: str
    rows: tuple[tuple[object, ...], ...]

    def create(self) -> str:
        """The CREATE TABLE statement."""
        parts = [f"{quoted(name)} {kind if kind != 'no such' else 'no_such'}" for name, kind in self.columns]
        return f"CREATE TABLE {quoted(self.name)} ({', '.join([*parts, *self.constraints])}){self.suffix}"


def quoted(name: str) -> str:
    """Always in quotes, so that an empty name is a name."""
    return '"' + name.replace('"', '""') + '"'


@st.composite
def tables(draw: st.DrawFn) -> list[OddTable]:
    """One to four tables, some of which point at each other, at themselves, or at tables that do not exist."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique_by=str.lower))
    found = []
    for name in names:
        columns = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique_by=str.lower))
        typed = tuple((column, draw(st.sampled_from(TYPES))) for column in columns)
        constraints, suffix = [], ""
        key = draw(st.sampled_from(["none", "none", "first", "first", "both", "without rowid"]))
        if key in ("first", "without rowid"):
            constraints.append(f"PRIMARY KEY ({quoted(columns[0])})")
            suffix = " WITHOUT ROWID" if key == "without rowid" else ""
        elif key == "both":
            constraints.append(f"PRIMARY KEY ({', '.join(map(quoted, columns[:2]))})")
        for column in columns:
            if draw(st.integers(0, 3)) == 0:
                parent = draw(st.sampled_from([*names, "missing"]))
                target = draw(st.sampled_from(["", f"({quoted(draw(st.sampled_from(NAMES)))})"]))
                constraints.append(f"FOREIGN KEY ({quoted(column)}) REFERENCES {quoted(parent)} {target}")
        kinds = [draw(st.one_of(*KINDS)) for _ in columns]
        rows = draw(st.lists(st.tuples(*kinds), max_size=25))
        found.append(OddTable(name, typed, tuple(constraints), suffix, tuple(rows)))
    return found


def write(path: Path, found: list[OddTable], extras: tuple[str, ...] = ()) -> Path:
    """The database of these tables. Rows that break a constraint are left out."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        for table in found:
            connection.execute(table.create())
            for row in table.rows:
                values = [value.encode("utf-8", "surrogatepass") if _broken(value) else value for value in row]
                place = ", ".join("CAST(? AS TEXT)" if _broken(value) else "?" for value in row)
                with suppress(sqlite3.IntegrityError):  # a text in an INTEGER PRIMARY KEY
                    connection.execute(f"INSERT OR IGNORE INTO {quoted(table.name)} VALUES ({place})", values)
        for statement in extras:
            connection.execute(statement)
        connection.commit()
    return path


def _broken(value: object) -> bool:
    return isinstance(value, str) and any(0xD800 <= ord(character) <= 0xDFFF for character in value)
