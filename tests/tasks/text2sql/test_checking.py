"""What the words of a question demand of its SQL, checked without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from quatrain.tasks.text2sql.checking import contradictions, topics_of
from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.linking import Linker


@pytest.fixture(scope="module")
def linker(shop: Path) -> Linker:
    return Linker.of(introspect(shop))


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("customers without email", "name FROM customers WHERE email IS NULL", "name, email FROM customers"),
        ("average price", "AVG(price) FROM products", "price FROM products"),
        ("share of card orders", "100.0 * SUM(payment = 'card') / COUNT(*) FROM orders", "COUNT(*) FROM orders"),
        ("products above 20 euros", "name FROM products WHERE price > 20", "name FROM products WHERE price < 20"),
        ("products under 20 euros", "name FROM products WHERE price < 20", "name FROM products WHERE stock < 20"),
        ("products per brand", "brand, COUNT(*) FROM products GROUP BY brand", "COUNT(*) FROM products"),
        ("orders in 2024", "* FROM orders WHERE order_date LIKE '2024%'", "* FROM orders WHERE order_id = 2024"),
        ("products rated 4", "name FROM products WHERE rating = 4", "name FROM products WHERE stock = 4"),
        ("sold out products", "name FROM products WHERE stock = 0", "name FROM products"),
        ("card orders but not pending", "* FROM orders WHERE payment = 'card' AND status != 'pending'",
         "* FROM orders WHERE payment != 'card' AND status = 'pending'"),
        ("orders above 5 euros", "* FROM orders WHERE shipping_cost > 5",
         "* FROM orders WHERE shipping_cost > 5 AND shipping_cost > 5"),
    ],
)  # fmt: skip
def test_words_that_a_statement_contradicts_are_noticed(linker: Linker, question: str, right: str, wrong: str) -> None:
    linked, topics = linker.link(question), topics_of(linker.schema)
    assert contradictions(linked, f"SELECT {right}", topics) == 0
    assert contradictions(linked, f"SELECT {wrong}", topics) > 0


def test_no_more_than_is_no_negation(linker: Linker) -> None:
    linked = linker.link("products for no more than 20")
    assert contradictions(linked, "SELECT name FROM products WHERE price <= 20", topics_of(linker.schema)) == 0
