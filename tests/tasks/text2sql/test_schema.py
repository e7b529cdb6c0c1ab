from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql import introspect

MakeDatabase = Callable[..., Path]


def roles(path: Path, table: str) -> dict[str, str]:
    return {column.name: column.role for column in introspect(path).table(table).columns}


def test_the_shop_is_understood(shop: Path) -> None:
    schema = introspect(shop)
    assert [table.many for table in schema.tables] == [
        "cities", "categories", "customers", "products", "orders", "order lines",
    ]  # fmt: skip
    assert roles(shop, "products") == {
        "product_id": "key", "name": "text", "brand": "category", "price": "money", "stock": "number",
        "rating": "number", "category_id": "reference",
    }  # fmt: skip
    assert {(key.table, key.parent, key.label) for key in schema.foreign_keys} == {
        ("customers", "cities", "city"), ("products", "categories", "category"), ("orders", "customers", "customer"),
        ("order_lines", "orders", "order"), ("order_lines", "products", "product"),
    }  # fmt: skip
    assert schema.table("customers").title is schema.table("customers").column("name")
    assert schema.table("orders").title is None
    assert [column.name for column in schema.table("orders").identity] == ["order_id"]
    assert schema.table("customers").column("email").nulls > 0


def test_odd_names_are_quoted_and_said(odd: Path) -> None:
    schema = introspect(odd)
    assert [table.name for table in schema.tables] == ["Group", 'Übersicht "Order" Items']
    assert any("empty" in note and "no rows" in note for note in schema.notes)
    items = schema.tables[1]
    assert items.sql == '"Übersicht ""Order"" Items"'
    assert items.many == "übersicht order items"
    assert items.column("picture").role == "other"
    assert items.column("CreatedAt").role == "date"
    assert items.column("unit price").role == "money"
    assert schema.tables[0].column("in").sql == '"in"'
    (key,) = schema.foreign_keys
    with closing(sqlite3.connect(odd)) as connection:
        assert connection.execute(f"SELECT count(*) FROM {items.sql} {key.join}").fetchone() == (120,)
        for statement in schema.create_statements():
            sqlite3.connect(":memory:").execute(statement)


def test_keys_are_inferred_only_where_values_and_names_agree(tmp_path: Path, make: MakeDatabase) -> None:
    path = make(
        tmp_path / "plain.db",
        "CREATE TABLE state (state_name TEXT, area REAL)",
        "CREATE TABLE river (name TEXT, state_name TEXT, code INTEGER)",
        "CREATE TABLE codes (code INTEGER, name TEXT)",
        "CREATE TABLE peak (peak_name TEXT, state_name TEXT)",
        "CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, author_id INTEGER)",
        "INSERT INTO state VALUES ('ohio', 1), ('iowa', 2), ('utah', 3)",
        "INSERT INTO river VALUES ('a', 'ohio', 1), ('b', 'ohio', 2), ('c', 'iowa', 9)",
        "INSERT INTO codes VALUES (1, 'x'), (2, 'y'), (9, 'z')",
        "INSERT INTO peak VALUES ('p', 'ohio'), ('q', 'texas'), ('r', 'ohio')",
        "INSERT INTO author VALUES (1, 'A'), (2, 'B'), (3, 'C')",
        "INSERT INTO book VALUES (1, 'One', 1), (2, 'Two', 1), (3, 'Three', 2)",
    )
    found = {(key.table, key.column, key.parent, key.parent_column) for key in introspect(path).foreign_keys}
    assert found == {("river", "state_name", "state", "state_name"), ("book", "author_id", "author", "id")}
    assert not any(key.declared for key in introspect(path).foreign_keys)


def test_a_reference_to_nothing_is_left_out_with_a_note(tmp_path: Path, make: MakeDatabase) -> None:
    path = make(
        tmp_path / "dangling.db",
        "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE TABLE b (id INTEGER PRIMARY KEY, name TEXT, a REFERENCES a(missing), c REFERENCES gone)",
        "INSERT INTO a VALUES (1, 'x'), (2, 'y')",
        "INSERT INTO b VALUES (1, 'x', 1, 1), (2, 'y', 2, 1)",
    )
    schema = introspect(path)
    assert schema.foreign_keys == ()
    assert any("a.missing" in note for note in schema.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"), (b"name,age\nAnn,30\n", "not an SQLite database"),
        (b"SQLite format 3\x00" + b"\xff" * 600, "damaged or encrypted"), (bytes(range(256)) * 8, "encrypted"),
    ],
)  # fmt: skip
def test_files_that_are_no_database_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "shop.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        introspect(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_missing_files_folders_and_databases_without_rows(tmp_path: Path, make: MakeDatabase) -> None:
    with pytest.raises(InputError, match="no such file"):
        introspect(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    with pytest.raises(InputError, match="folder"):
        introspect(tmp_path)
    with pytest.raises(InputError, match="no tables"):
        introspect(make(tmp_path / "none.db", "CREATE TABLE t (a)", "DROP TABLE t"))
    with pytest.raises(InputError, match="no rows") as caught:
        introspect(make(tmp_path / "rows.db", "CREATE TABLE t (a)", "CREATE TABLE u (a)"))
    assert len(caught.value.problems) == 2


def test_a_locked_database_says_so(tmp_path: Path, make: MakeDatabase) -> None:
    path = make(tmp_path / "locked.db", "CREATE TABLE t (a TEXT)", "INSERT INTO t VALUES ('x')")
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match="locked"):
            introspect(path)


def test_a_torn_database_says_so(tmp_path: Path, shop: Path) -> None:
    path = tmp_path / "torn.sqlite"
    content = bytearray(shop.read_bytes())
    content[4096 : 4096 * 40] = b"\x5a" * (4096 * 39)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        introspect(path)


def test_reading_leaves_no_trace(tmp_path: Path, make: MakeDatabase) -> None:
    path = make(tmp_path / "wal.db", "PRAGMA journal_mode = WAL; CREATE TABLE t (n TEXT); INSERT INTO t VALUES ('x')")
    before = path.read_bytes()
    introspect(path)
    assert path.read_bytes() == before


def test_real_databases(shared: Path) -> None:
    geography = introspect(shared / "geography" / "geography.sqlite")
    assert {(key.table, key.parent) for key in geography.foreign_keys} == {
        (table, "state") for table in ("border_info", "city", "highlow", "lake", "mountain", "river")
    }
    assert geography.table("city").column("state_name").label == "state"
    chinook = introspect(shared / "chinook" / "chinook.sqlite")
    assert len(chinook.foreign_keys) == 11
    assert [column.name for column in chinook.table("Customer").identity] == ["FirstName", "LastName"]
    assert chinook.table("Invoice").column("InvoiceDate").stamp
    restaurants = introspect(shared / "restaurants" / "restaurants.sqlite")
    assert any("no such column" in note for note in restaurants.notes)
