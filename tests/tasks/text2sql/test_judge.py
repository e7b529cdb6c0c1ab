from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quatrain.tasks.text2sql import Connection, execution_match
from quatrain.tasks.text2sql.judge import normalise, reference_error


@pytest.fixture(scope="module")
def connection(shop: Path) -> Connection:
    return Connection(shop)


CASES = [
    # the same answer said otherwise
    ("SELECT COUNT(*) FROM products", "select count(product_id) from products;", True),
    (
        "SELECT name FROM cities WHERE country = 'France'",
        "SELECT name AS n FROM cities c WHERE c.country IN ('France')",
        True,
    ),
    (
        "SELECT name FROM cities WHERE country = 'France'",
        "SELECT name FROM cities WHERE country = 'France' ORDER BY name",
        True,
    ),
    ("SELECT AVG(price) FROM products", "SELECT SUM(price) / COUNT(*) FROM products", True),
    (
        "SELECT country, COUNT(*) FROM cities GROUP BY country",
        "SELECT country, SUM(1) FROM cities GROUP BY 1 ORDER BY 2",
        True,
    ),
    # other answers
    ("SELECT COUNT(*) FROM products", "SELECT COUNT(*) FROM orders", False),
    ("SELECT name FROM cities WHERE country = 'France'", "SELECT name FROM cities WHERE country = 'Spain'", False),
    ("SELECT status FROM orders LIMIT 3", "SELECT DISTINCT status FROM orders", False),
    (
        "SELECT name FROM products ORDER BY price DESC LIMIT 5",
        "SELECT name FROM products ORDER BY price LIMIT 5",
        False,
    ),
    ("SELECT name, price FROM products", "SELECT name FROM products", False),
    # how often a row stands counts
    ("SELECT payment FROM orders", "SELECT DISTINCT payment FROM orders", False),
    # order counts where the question asks for it
    (
        "SELECT name FROM cities WHERE country = 'France' ORDER BY population DESC",
        "SELECT name FROM cities WHERE country = 'France' ORDER BY population ASC",
        False,
    ),
    # an empty answer proves nothing
    ("SELECT name FROM cities WHERE country = 'Utopia'", "SELECT name FROM cities WHERE country = 'Erewhon'", False),
    ("SELECT name FROM cities WHERE country = 'Utopia'", "select name  from cities where country='Utopia' ;", True),
    (
        "SELECT COUNT(*) FROM cities WHERE country = 'Utopia'",
        "SELECT COUNT(*) FROM cities WHERE country = 'utopia'",
        False,
    ),
    ("SELECT SUM(price) FROM products WHERE price < 0", "SELECT MAX(price) FROM products WHERE price < 0", False),
    # statements that fail
    ("SELECT name FROM cities", "SELECT nam FROM cities", False),
    ("SELECT name FROM cities", "", False),
    ("SELECT nam FROM cities", "SELECT nam FROM cities", False),
]


@pytest.mark.parametrize(("gold", "predicted", "correct"), CASES)
def test_answers_decide(connection: Connection, gold: str, predicted: str, correct: bool) -> None:
    verdict = execution_match(connection, gold, predicted)
    assert verdict.correct is correct, verdict
    assert verdict.detail


def test_reasons_are_told(connection: Connection) -> None:
    def detail(predicted: str) -> str:
        return execution_match(connection, "SELECT name FROM cities ORDER BY name", predicted).detail

    assert "no such column" in detail("SELECT nam FROM cities")
    assert detail("SELECT name FROM cities LIMIT 3") == "3 rows instead of 64"
    assert detail("SELECT name FROM cities ORDER BY name DESC") == "the same rows in another order"
    assert detail("SELECT name, country FROM cities") == "2 columns instead of 1"


def test_texts_that_mean_the_same_are_the_same() -> None:
    assert normalise("SELECT  a FROM t WHERE b='X  y' ;") == normalise("select a from T where b = 'X  y'")
    assert normalise("SELECT COUNT( * ) FROM t") == normalise("select count(*) from t")
    assert normalise("SELECT a FROM t WHERE b = 'x'") != normalise("SELECT a FROM t WHERE b = 'X'")
    assert normalise("SELECT a FROM t WHERE b >= 1") != normalise("SELECT a FROM t WHERE b > 1")


def test_gold_answers_are_run_once(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Connection(shop) as connection:
        ran: list[str] = []
        run = connection.execute
        monkeypatch.setattr(connection, "execute", lambda sql, **more: ran.append(sql) or run(sql, **more))
        for _ in range(3):
            execution_match(connection, "SELECT COUNT(*) FROM orders", "SELECT COUNT(*) FROM products")
        assert ran.count("SELECT COUNT(*) FROM orders") == 1


def select(rows: list[tuple[object, ...]]) -> str:
    """A statement that answers with these rows."""

    def literal(cell: object) -> str:
        if cell is None:
            return "NULL"
        if isinstance(cell, bytes):
            return f"x'{cell.hex()}'"
        if isinstance(cell, str):
            return "'" + cell.replace("'", "''") + "'"
        if isinstance(cell, float) and math.isinf(cell):
            return "9e999" if cell > 0 else "-9e999"
        return repr(cell)

    return "VALUES " + ", ".join("(" + ", ".join(map(literal, row)) + ")" for row in rows)


@pytest.mark.parametrize(
    ("gold", "said", "right"),
    [
        (b"\x01\x02", b"\x01\x03", False),  # blobs of one length
        (b"\x01\x02", b"\x01\x02", True),
        (b"a", "a", False),
        ("x" * 5000 + "a", "x" * 5000 + "b", False),  # alike as far as they are shown
        ("<2 bytes>", b"ab", False),
        (12345678, 12345679, False),  # keys, not measurements
        (12345678, 12345678.0, True),
        (0.1 + 0.2, 0.3, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, 1.7e308, False),
        (2**63 - 1, 2**63 - 2, False),
        ("1", 1, False),
        (None, "", False),
    ],
)
def test_cells_are_compared_as_what_they_are(connection: Connection, gold: object, said: object, right: bool) -> None:
    verdict = execution_match(connection, select([(gold, 1), (7, 2)]), select([(7, 2), (said, 1)]) + " ")
    assert verdict.correct == right, verdict.detail


CELLS = (
    st.none()
    | st.integers(-(2**62), 2**62)
    | st.integers(0, 3)
    | st.floats(allow_nan=False)
    | st.text("ab'é", max_size=3)
    | st.binary(max_size=2)
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_rows_in_another_order_are_the_same_answer(
    connection: Connection, rows: list[tuple[object, object]], rng: random.Random
) -> None:
    other = list(rows)
    rng.shuffle(other)
    gold = select(list(rows))
    if any(cell not in (None, 0) for row in rows for cell in row):
        assert execution_match(connection, gold, select(list(other)) + "\n").correct
        wrong = [*other[1:], ("no such cell", 1)]
        assert not execution_match(connection, gold, select(list(wrong))).correct


def test_a_reference_that_fails_judges_nothing(connection: Connection) -> None:
    verdict = execution_match(connection, "SELECT * FROM nowhere", "SELECT 1")
    assert not verdict.correct and not verdict.judged
    assert reference_error(connection, "SELECT * FROM nowhere") == "no such table: nowhere"
    assert reference_error(connection, "SELECT 1") is None
