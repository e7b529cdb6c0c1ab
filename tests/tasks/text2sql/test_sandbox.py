from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from quick_set import some

from quatrain.tasks.text2sql import Connection

BOMB = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def connection(shop: Path) -> Connection:
    return Connection(shop, seconds=0.3, rows=10, cell=20)


def test_a_question_is_answered(connection: Connection) -> None:
    result = connection.execute("SELECT name, price AS cost FROM products ORDER BY price DESC LIMIT 2;")
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


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., Path]) -> Path:
    """Twenty rows of long texts and pictures."""
    fill = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19)"
    return make(
        tmp_path_factory.mktemp("large") / "large.sqlite",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, body TEXT, picture BLOB)",
        f"INSERT INTO t {fill} SELECT i, 'n' || i, printf('%.*c', 1900000, 'x'), zeroblob(1900000) FROM n",
    )


NESTED = ", ".join(f"a{n} AS (SELECT * FROM a{n - 1} UNION ALL SELECT * FROM a{n - 1})" for n in range(1, 30))
BOMBS = {
    "many texts in a row": "SELECT " + ",".join(["body"] * 1900) + " FROM t",
    "many blobs in a row": "SELECT " + ",".join(["picture"] * 1900) + " FROM t",
    "blobs of texts": "WITH q AS (SELECT body b FROM t) SELECT " + ",".join(["CAST(b AS BLOB)"] * 1200) + " FROM q",
    "functions": "SELECT " + ",".join(f"upper(substr(body, {n}))" for n in range(800)) + " FROM t",
    "search": "SELECT instr(body, substr(body, 1, 900000) || 'b') FROM t",
    "trim": "SELECT trim(name || substr(hex(char(1,2,3)), 1), substr(body, 1, 90000)) FROM t",
    "patterns": "SELECT count(*) FROM t a, t b WHERE a.body GLOB '*[a-z]?[!b]*[a-z]?[a-z]*[a-z]*[a-z]*[a-z]*b'",
    "nested": f"WITH a0 AS (SELECT 1 x), {NESTED} SELECT count(*) FROM a29",
    "union": "WITH RECURSIVE n(x, y) AS (SELECT 1, 'a' UNION SELECT x + 1, y || y FROM n) SELECT * FROM n",
    "concatenation": "SELECT group_concat(body) FROM t",
    "all columns": "SELECT * FROM " + ", ".join(f"t a{n}" for n in range(60)),
}

BOMB_SCRIPT = """
import json, resource, sys, time
from quatrain.core.process_memory import peak_memory
from quatrain.tasks.text2sql import Connection
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
start = time.process_time()
with Connection(sys.argv[1], seconds=1.0) as connection:
    result = connection.execute(sys.argv[2])
    connection.seconds = 60
    assert connection.execute("SELECT 1").rows == ((1,),)
print(json.dumps([result.error, time.process_time() - start, peak_memory()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
@pytest.mark.parametrize("sql", some(BOMBS.values(), [BOMBS["many texts in a row"], BOMBS["union"]]), ids=BOMBS)
def test_bombs_end_soon_and_small(large: Path, sql: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMB_SCRIPT, str(large), sql], capture_output=True, text=True, timeout=120, check=True
    )
    error, seconds, peak = json.loads(done.stdout)
    assert error is not None or seconds < 3, "a fast machine may come to the end within the limit"
    assert seconds < 30, "without a limit it is minutes of processor time"
    assert peak < 1_200_000_000


def test_answers_are_bounded_by_bytes(large: Path) -> None:
    with Connection(large, size=50_000) as connection:
        result = connection.execute("SELECT * FROM t")
        assert result.error is None and len(result.rows) == 20
        assert all(len(row[2]) == 2001 and row[3] == "<1900000 bytes>" for row in result.rows)
        many = connection.execute("SELECT a.name, substr(a.body, 1, 1000) FROM t a, t b")
        assert many.truncated and 40 < len(many.rows) < 60
        assert many.size < 60_000
        assert connection.execute("SELECT trim(name), upper(body) FROM t LIMIT 1").error is None


def test_cells_are_compared_whole(large: Path) -> None:
    with Connection(large) as connection:
        first, second = (
            connection.execute(f"SELECT substr(body, 1, 5000) || '{end}' FROM t LIMIT 1", exact=True).rows
            for end in ("01", "02")
        )
        assert first != second and len(first[0][0]) < 2100
        assert first == connection.execute("SELECT substr(body, 9, 5000) || '01' FROM t LIMIT 1", exact=True).rows
        assert connection.execute("SELECT x'0001'", exact=True).rows == ((b"\x00\x01",),)
        broken, other = (
            connection.execute(f"SELECT CAST(x'41{byte}' AS TEXT)", exact=True).rows for byte in ("FE", "FF")
        )
        assert broken != other


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
