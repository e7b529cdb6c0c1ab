from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql import create_shop


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_one_seed_gives_one_shop(shop: Path, tmp_path: Path) -> None:
    again, other = create_shop(tmp_path / "again.sqlite"), create_shop(tmp_path / "other.sqlite", seed=1)
    assert again.read_bytes() == shop.read_bytes()
    assert content(other) != content(shop)


def test_the_shop_is_whole_and_of_realistic_size(shop: Path) -> None:
    with closing(sqlite3.connect(shop)) as connection:
        count = {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        }
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert count["customers"] == 800
        assert count["orders"] == 4000
        assert count["order_lines"] > 8000
        early = "SELECT count(*) FROM orders JOIN customers USING (customer_id) WHERE order_date < join_date"
        assert connection.execute(early).fetchone() == (0,)
        for table, child in (("customers", "orders"), ("products", "order_lines")):
            key = table[:-1] + "_id"
            idle = f"SELECT count(*) FROM {table} WHERE {key} NOT IN (SELECT {key} FROM {child})"
            assert connection.execute(idle).fetchone()[0] > 0
        names = [row[0] for row in connection.execute("SELECT name FROM customers")]
    assert len(set(names)) == len(names)
    assert any("'" in name for name in names)
    assert any("-" in name for name in names)
    assert any(not name.isascii() for name in names)


def test_it_takes_less_than_two_seconds(tmp_path: Path) -> None:
    start = time.process_time()
    create_shop(tmp_path / "shop.sqlite")
    assert time.process_time() - start < 2


def test_a_failed_write_leaves_the_old_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_shop(tmp_path / "shop.sqlite", customers=5, products=5, orders=5)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        create_shop(path, seed=2)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["shop.sqlite"]


def test_wrong_sizes_and_places_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        create_shop(tmp_path / "shop.sqlite", customers=0, orders=-1)
    assert len(caught.value.problems) == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="Cannot write"):
        create_shop(tmp_path / "file" / "shop.sqlite")
