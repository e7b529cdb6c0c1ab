from __future__ import annotations

from pathlib import Path

import pytest

from quatrain.applications.text2sql import Connection, execution_match
from quatrain.applications.text2sql.judge import normalise


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
