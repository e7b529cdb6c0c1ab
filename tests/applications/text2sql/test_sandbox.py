from __future__ import annotations

import threading
from pathlib import Path

import pytest

from quatrain.applications.text2sql import Connection, answer

BOMB = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def connection(shop: Path) -> Connection:
    return Connection(shop, seconds=0.3, rows=10, cell=20)


def test_a_question_is_answered(connection: Connection) -> None:
    result = answer(connection, "SELECT name, price AS cost FROM products ORDER BY price DESC LIMIT 2;")
    assert result.error is None
    assert result.columns == ("name", "cost")
    assert len(result.rows) == 2
    assert not result.truncated
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("DELETE FROM products", "only reading"), ("drop table products", "only reading"),
        ("INSERT INTO cities VALUES (99, 'x', 'y', 1)", "only reading"),
        ("UPDATE products SET price = 0", "only reading"),
        ("PRAGMA query_only = OFF", "only reading"), ("ATTACH DATABASE '/tmp/x.db' AS x", "only reading"),
        ("VACUUM INTO '/tmp/x.db'", "only reading"), ("EXPLAIN SELECT 1", "only reading"), ("BEGIN", "only reading"),
        ("WITH a AS (SELECT 1) DELETE FROM products", "only reading"), ("CREATE TABLE t (a)", "only reading"),
        ("SELECT 1; SELECT 2", "one statement"), ("SELECT 1; DROP TABLE products", "one statement"),
        ("SELECT load_extension('x')", "load_extension is not allowed"), ("SELECT readfile('/etc/passwd')", "readfile"),
        ("SELECT writefile('/tmp/x', 'y')", "writefile"),
        ("SELECT randomblob(1000000000)", "randomblob is not allowed"),
        ("SELECT zeroblob(1000000000)", "zeroblob is not allowed"),
        ("SELECT printf('%.*c', 900000000, 'x')", "printf is not allowed"),
        ("SELECT replace(hex(group_concat(name)), '4', group_concat(name)) FROM customers", "too large"),
        ("SELECT * FROM sqlite_master", "sqlite_master"), ("SELECT * FROM pragma_table_info('cities')", "only reading"),
        ("SELECT nonsense FROM products", "no such column: nonsense"), ("SELECT FROM WHERE", "syntax error"),
        ("", "no statement"), ("  -- a remark\n ;", "no statement"), ("/* a */ /* b */", "no statement"),
        ("SELECT 'a\x00b'", "NUL"), ("how many products?", "only reading"), ("SELECT 'unclosed", "unrecognized token"),
        ("SELECT " + "(" * 150 + "1" + ")" * 150, ""), ("SELECT '" + "x" * 30000 + "'", "too large"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_a_reason(connection: Connection, shop: Path, sql: str, reason: str) -> None:
    before = shop.read_bytes()
    result = connection.execute(sql)
    assert result.error is not None
    assert reason in result.error
    assert result.rows == ()
    assert shop.read_bytes() == before
    assert connection.execute("SELECT 1").rows == ((1,),)


@pytest.mark.parametrize("sql", [BOMB, "SELECT count(*) FROM order_lines a, order_lines b, order_lines c"])
def test_long_statements_are_stopped(connection: Connection, sql: str) -> None:
    result = connection.execute(sql)
    assert result.error is not None
    assert "stopped after 0.3 s" in result.error
    assert result.seconds < 2
    assert connection.execute("SELECT 1").rows == ((1,),)


def test_long_answers_are_cut(connection: Connection) -> None:
    many = connection.execute("SELECT order_id FROM orders")
    assert len(many.rows) == 10
    assert many.truncated
    assert not connection.execute("SELECT order_id FROM orders LIMIT 10").truncated
    (row,) = connection.execute("SELECT group_concat(name, ' ') FROM customers").rows
    assert len(row[0]) == 21
    assert row[0].endswith("…")
    assert connection.execute("SELECT x'0011'").rows == (("<2 bytes>",),)


def test_what_the_questions_need_is_allowed(connection: Connection) -> None:
    for sql in (
        "SELECT strftime('%Y', order_date), COUNT(*) FROM orders GROUP BY 1",
        "VALUES (1, 2)",
        "WITH a AS (SELECT price FROM products) SELECT AVG(price), MIN(price), MAX(price), SUM(price) FROM a",
        "-- a remark\nSELECT DISTINCT round(price), upper(name) FROM products WHERE name LIKE '%Oak%'",
        "SELECT name FROM products WHERE price > (SELECT AVG(price) FROM products)",
        "SELECT rank() OVER (ORDER BY price) FROM products LIMIT 3",
    ):
        assert connection.execute(sql).error is None, sql


def test_it_serves_several_threads(connection: Connection) -> None:
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(connection.execute("SELECT COUNT(*) FROM orders").rows))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [((4000,),)] * 8
