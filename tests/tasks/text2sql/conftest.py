from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from quatrain.tasks.text2sql import Text2SQL, create_shop


def make_database(path: Path, *statements: str) -> Path:
    """A database from SQL statements."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.executescript(statement)
        connection.commit()
    return path


@pytest.fixture(scope="session")
def make() -> Callable[..., Path]:
    """`make(path, *statements)`: a database from SQL statements."""
    return make_database


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_shop(tmp_path_factory.mktemp("shop") / "shop.sqlite")


@pytest.fixture(scope="session")
def data(shop: Path) -> Text2SQL:
    return Text2SQL.build(shop, seed=0, examples=6000, practice=600)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared text-to-SQL data, where there is any."""
    folder = Path(os.environ.get("QUATRAIN_DATA", "")) / "text2sql"
    if "QUATRAIN_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set QUATRAIN_DATA to a folder with text2sql/ to test on real databases")
    return folder


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spaces, keywords, quotes, other alphabets and CamelCase in names; a view, an empty table, gaps, a picture."""
    rows = ", ".join(
        f"({number}, 'Größe {number % 13}', 'It''s {chr(65 + number % 26)}', {number % 7}, {number * 1.25}, "
        f"'20{10 + number % 12}-0{1 + number % 9}-1{number % 10}', {1 + number % 9}, "
        f"{'NULL' if number % 11 == 0 else number * 3}, x'00ff')"
        for number in range(1, 121)
    )
    groups = ", ".join(f"({number}, 'Gruppe {number}', 'Ort {number % 4}')" for number in range(1, 12))
    return make_database(
        tmp_path_factory.mktemp("odd") / "odd names.sqlite",
        """CREATE TABLE "Group" ("Group Id" INTEGER PRIMARY KEY, "group name" TEXT, "in" TEXT)""",
        f"""INSERT INTO "Group" VALUES {groups}""",
        """CREATE TABLE "Übersicht ""Order"" Items" (
            "select" INTEGER PRIMARY KEY, "Straßen-Name" TEXT, "it's" TEXT, "OrderCount" INTEGER, "unit price" REAL,
            "CreatedAt" TEXT, "Group Id" INTEGER REFERENCES "Group", "über-maß" INTEGER, picture BLOB)""",
        f"""INSERT INTO "Übersicht ""Order"" Items" VALUES {rows}""",
        """CREATE TABLE empty (a TEXT)""",
        """CREATE VIEW everything AS SELECT * FROM "Group" """,
    )
