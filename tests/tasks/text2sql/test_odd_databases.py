"""Databases as they come: any value anywhere, odd names, damaged files. Each works, or one error says why."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from odd_databases import OddTable, tables, write
from quick_set import some

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql import Connection, Text2SQL, introspect, opening
from quatrain.tasks.text2sql.databases import Databases, schema_text, tables_of
from quatrain.tasks.text2sql.opening import connect

Make = Callable[..., Path]
PRICES = (
    "CREATE TABLE items (name TEXT, price REAL)",
    *(f"INSERT INTO items VALUES ('thing {number}', {number * 1.5})" for number in range(40)),
)


def everything(path: Path) -> Text2SQL:
    """All that a run makes of a database; every statement of it runs."""
    data = Text2SQL.build(path, examples=40, practice=10, held_out=4, development=4)
    assert len(list(data.documents(40))) == 40
    with Connection(path) as connection:
        for example in [*data.train, *data.practice, *data.development, *chain(*data.held_out.values())]:
            assert connection.execute(example.sql).error is None, example.sql
    return data


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
def test_any_database_works_or_one_error_says_why(
    tmp_path_factory: pytest.TempPathFactory, found: list[OddTable]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "random.sqlite", found)
    try:
        everything(path)
    except InputError as error:
        assert error.problems
    assert schema_text(path).count("\n") >= len(found) - 1
    assert [name for name, _ in tables_of(path)] == [table.name for table in found]


def test_a_missing_name_is_no_name(make: Make, tmp_path: Path) -> None:
    """The column that names things has a NULL, a number and a blob."""
    rows = [(number, f"Item {number}", number * 2.5) for number in range(40)]
    path = make(tmp_path / "x.sqlite", "CREATE TABLE items (id INTEGER PRIMARY KEY, name, price REAL)")
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
        connection.execute("UPDATE items SET name = NULL WHERE id % 5 = 0")
        connection.commit()
    texts = list(everything(path).documents(400))
    assert not any("None" in text for text in texts)


@pytest.mark.parametrize(
    "odd", [None, b"\x00\xff", float("inf"), float("-inf"), "text", "", 2**63 - 1, "\x00", "2024-01-02"]
)
@pytest.mark.parametrize("column", some(["id", "name", "price", "made", "open"], ["name", "price"]))
def test_an_odd_cell_in_any_column(make: Make, tmp_path: Path, column: str, odd: object) -> None:
    path = make(tmp_path / "x.sqlite", "CREATE TABLE items (id, name, price, made, open)")
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
            [(n, f"Item {n}", n * 2.5, f"2024-01-{1 + n % 28:02d}", n % 2) for n in range(3000)],
        )
        # Behind the sample that tells what a column holds, and within it.
        connection.execute(f"UPDATE items SET {column} = ? WHERE id IN (7, 2990)", [odd])
        connection.commit()
    everything(path)


def test_real_databases(shared: Path) -> None:
    for path in sorted(shared.glob("*/*.sqlite")):
        try:
            everything(path)
        except InputError as error:
            assert "has no rows" in error.message


def test_a_wide_table_and_many_tables(make: Make, tmp_path: Path) -> None:
    names = [f"c{number}_{('name', 'price', 'made', 'id')[number % 4]}" for number in range(2000)]
    path = make(tmp_path / "wide.sqlite", f"CREATE TABLE wide ({', '.join(names)})")
    with closing(sqlite3.connect(path)) as connection:
        for row in range(30):
            cells = [(f"v{row}", row * 1.5, f"2020-01-{1 + row % 28:02d}", row)[number % 4] for number in range(2000)]
            connection.execute(f"INSERT INTO wide VALUES ({', '.join('?' * 2000)})", cells)
        connection.commit()
    assert any("1,900 columns left out" in note for note in everything(path).notes)
    with Connection(path) as connection:
        assert len(connection.execute("SELECT * FROM wide").rows[0]) == 2000
    statements = [
        f"CREATE TABLE t{n} (name TEXT, price REAL, t{max(0, n - 1)}_id INT);"
        f"INSERT INTO t{n} VALUES ('a', 1, 2), ('b', 2, 3)"
        for n in range(305)
    ]
    many = make(tmp_path / "many.sqlite", *statements)
    assert any("5 tables left out" in note for note in introspect(many).notes)
    assert len(tables_of(many)) == 305


def test_computed_columns_virtual_tables_and_views_that_fail(make: Make, tmp_path: Path) -> None:
    path = make(
        tmp_path / "x.sqlite",
        "CREATE TABLE items (a INT, twice INT AS (a * 2) VIRTUAL, name TEXT, price REAL,"
        "loud TEXT AS ('x' || name) STORED)",
        *(f"INSERT INTO items (a, name, price) VALUES ({n}, 'n{n}', {n * 1.5})" for n in range(40)),
        "CREATE VIEW broken AS SELECT * FROM nowhere",
    )
    columns = introspect(path).table("items").columns
    assert [(column.name, column.role) for column in columns] == [
        ("a", "number"), ("twice", "number"), ("name", "text"), ("price", "money"), ("loud", "text"),
    ]  # fmt: skip
    everything(path)
    try:
        found = make(tmp_path / "fts.sqlite", *PRICES, "CREATE VIRTUAL TABLE docs USING fts5(title)")
    except sqlite3.OperationalError:
        pytest.skip("this SQLite has no FTS5")
    assert [table.name for table in introspect(found).tables] == ["items"]
    assert "it is virtual" in introspect(found).notes[0]
    unknown = make(
        tmp_path / "unknown.sqlite", *PRICES,
        "CREATE VIRTUAL TABLE docs USING fts5(title)", "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = 'CREATE VIRTUAL TABLE docs USING nosuch(title)' WHERE name = 'docs'",
    )  # fmt: skip
    everything(unknown)
    assert schema_text(unknown).startswith("items: name, price\n")
    assert schema_text(found) == "items: name, price"


def test_damaged_files(shop: Path, tmp_path: Path) -> None:
    whole, rng = shop.read_bytes()[: 4096 * 40], random.Random(1)
    path = tmp_path / "damaged.sqlite"
    for _ in range(60):
        content = bytearray(whole[: rng.choice([len(whole), 4096 * 3, 4096, 100, 17])])
        for _ in range(rng.choice([1, 20, 2000])):
            content[rng.randrange(16, len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            Text2SQL.build(path, examples=5, practice=0, held_out=0, development=0)
            with Connection(path) as connection:
                connection.execute("SELECT * FROM products")
        except InputError as error:
            assert error.problems


def test_an_unfinished_transaction_is_not_read_half(tmp_path: Path) -> None:
    """The file of a writer that was killed: some pages are new, the journal has the old ones."""
    writer = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    writer.execute("CREATE TABLE t (a)")
    writer.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 500)
    writer.executescript("PRAGMA cache_size = 5; BEGIN; UPDATE t SET a = 'y' || a")
    hot = tmp_path / "hot.sqlite"
    hot.write_bytes((tmp_path / "a.sqlite").read_bytes())
    (tmp_path / "hot.sqlite-journal").write_bytes((tmp_path / "a.sqlite-journal").read_bytes())
    writer.close()
    with pytest.raises(InputError, match=r"its last changes are still in hot\.sqlite-journal"):
        connect(hot)
    with closing(sqlite3.connect(hot)) as connection:
        assert connection.execute("SELECT count(*) FROM t WHERE a LIKE 'y%'").fetchone() == (0,)
    connect(hot).close()


def test_a_log_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only folder: SQLite cannot open the log, and the file alone lacks what stands in it."""
    path = tmp_path / "w.sqlite"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
    ready = opening._ready

    def refuse(uri: str) -> sqlite3.Connection:
        if "immutable" not in uri:
            raise sqlite3.OperationalError("unable to open database file")
        return ready(uri)

    monkeypatch.setattr(opening, "_ready", refuse)
    with pytest.raises(InputError, match=r"w\.sqlite-wal"):
        connect(path)
    monkeypatch.undo()
    writer.close()  # moves the log into the file
    monkeypatch.setattr(opening, "_ready", refuse)
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)


@pytest.mark.parametrize("name", ["~nosuchuser/x.sqlite", "a\0b.sqlite", "x" * 300, "."])
def test_paths_that_are_no_database(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        connect(name)
    with pytest.raises(InputError):
        Databases(name)


def test_two_databases_of_one_name(make: Make, tmp_path: Path) -> None:
    for folder in ("old", "new", "zoo"):
        (tmp_path / folder).mkdir()
    make(tmp_path / "old" / "pets.sqlite", *PRICES)
    make(tmp_path / "new" / "pets.sqlite", *PRICES)
    own = make(tmp_path / "zoo" / "zoo.sqlite", *PRICES)
    make(tmp_path / "old" / "zoo.sqlite", *PRICES)
    with Databases(tmp_path) as databases:
        assert databases.path("zoo") == own
        with pytest.raises(InputError, match="several databases called pets"):
            databases.path("pets")


def test_zip_files_of_all_kinds(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    database = make(tmp_path / "items.sqlite", *PRICES)
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(database, "items.sqlite")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(content)
    with Databases(broken) as databases, pytest.raises(InputError, match="is damaged"):
        databases.schema("items")
    monkeypatch.setattr("quatrain.tasks.text2sql.databases.MAX_SIZE", 100)
    with Databases(path) as databases, pytest.raises(InputError, match="at most 100 are"):
        databases.schema("items")
    monkeypatch.undo()
