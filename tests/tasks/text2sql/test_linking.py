"""Values of a database found in questions, spelling and numbers repaired, and values of statements spelled right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.linking import MOST_HINTS, Linker, disguised, snapped


@pytest.fixture(scope="module")
def linker(shop: Path) -> Linker:
    return Linker.of(introspect(shop))


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("How many custmers live in paris?", "how many customers live in Paris | cities.name = 'Paris'"),
        ("How many customers live in Paris", "how many customers live in Paris | cities.name = 'Paris'"),
        ("customers in PARIS", "customers in Paris | cities.name = 'Paris'"),
        ("cancelled orders", "cancelled orders | orders.status = 'cancelled'"),
        ("top five products", "top 5 products"),
        ("products above 1,500", "products above 1500"),
        ("orders since 1st of May 2024", "orders since 2024-05-01"),
        ("orders in May 2024", "orders in 2024-05"),
        ("orders on March 3, 2024", "orders on 2024-03-03"),
        ("orders in the first quarter of 2024", "orders between 2024-01-01 and 2024-03-31"),
        ("orders of Q2 2024", "orders between 2024-04-01 and 2024-06-30"),
        ("orders in the second half of 2023", "orders between 2023-07-01 and 2023-12-31"),
        ("joined after the first of June 2025", "joined after 2025-06-01"),
        ("cities with more than one million people", "cities with more than 1000000 people"),
        ("customers with more than one order", "customers with more than 1 order"),
        ("products available right now", "products available right now"),
        ("what's the avg price", "what is the average price"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_a_question_as_the_model_reads_it(linker: Linker, question: str, prompt: str) -> None:
    assert linker.link(question).prompt == prompt


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("French customers", "France"),
        ("german cities", "Germany"),
        ("customers in Munchen", "München"),
        ("customers in münchen", "München"),
    ],
)
def test_other_names_and_accents_find_their_value(linker: Linker, question: str, value: str) -> None:
    values = {hint.value for hint in linker.link(question).hints}
    known = {each for texts in linker._values.values() for each in texts}
    if value in known:
        assert value in values
    else:
        assert not values - known


def test_every_city_and_product_is_found_in_any_spelling(linker: Linker) -> None:
    columns = {"cities.name", "products.name", "customers.name"}
    names = sorted({
        value
        for texts in linker._values.values()
        for value, holders in texts.items()
        if any(column.full in columns for column in holders) and len(value) > 4
    })  # fmt: skip
    assert len(names) > 200
    missed = [
        name
        for name in names[:: len(names) // 150]
        for written in (name, name.lower(), name.upper())
        if name not in {hint.value for hint in linker.link(f"who bought {written} last year").hints}
    ]
    assert len(missed) <= 8, missed


def test_relative_dates_count_from_the_last_day_of_the_database(linker: Linker) -> None:
    assert linker.today is not None
    year, month = int(linker.today[:4]), linker.today[:7]
    assert linker.link("orders last year").text == f"orders in {year - 1}"
    assert linker.link("how many orders in this year").text == f"how many orders in {year}"
    assert linker.link("orders of this month").text == f"orders of {month}"
    assert linker.link("orders in the last 10 days").text.startswith("orders since 20")


@pytest.mark.parametrize(
    ("question", "wrong", "right"),
    [
        ("cities above 5 million", "population > 500000", "population > 5000000"),
        ("products between 10 and 25", "price BETWEEN 10 AND 20", "price BETWEEN 10 AND 25"),
        ("top 7 products", "price > 3 LIMIT 1", "price > 7 LIMIT 1"),
        ("orders in 2023", "strftime('%Y', order_date) = '2033'", "strftime('%Y', order_date) = '2023'"),
        (
            "orders in May 2024",
            "strftime('%Y-%m', order_date) = '2024-06'",
            "strftime('%Y-%m', order_date) = '2024-05'",
        ),
        ("orders before 2023", "order_date < '2022-01-01'", "order_date < '2023-01-01'"),
        ("orders of 2023", "order_date BETWEEN '2023-01-01' AND '2023-12-31'", None),
        ("orders without shipping", "shipping_cost = 0", None),
        ("pending card orders", "status IN ('pending', 'card')", "(status = 'pending' AND payment = 'card')"),
        ("pending and shipped orders", "status = 'pending' AND status = 'shipped'", "status IN ('pending', 'shipped')"),
        (
            "delivered orders paid by card",
            "status = 'delivered' AND status = 'delivered'",
            "status = 'delivered' AND payment = 'card'",
        ),
    ],
)
def test_a_statement_takes_numbers_days_and_values_from_its_question(
    linker: Linker, question: str, wrong: str, right: str | None
) -> None:
    start = "SELECT COUNT(*) FROM orders WHERE "
    assert snapped(linker.link(question), start + wrong) == start + (right or wrong)


def test_factors_and_precisions_are_not_numbers_of_the_question(linker: Linker) -> None:
    for sql in (
        "SELECT 1.0 * SUM(status = 'returned') / COUNT(*) FROM orders WHERE order_date LIKE '2024%'",
        "SELECT ROUND(10 * AVG(quantity) / 3, 2) FROM order_lines",
    ):
        assert snapped(linker.link("what part of the orders of 2024 got returned"), sql) == sql


def test_one_typing_error_is_repaired(linker: Linker) -> None:
    for wrong, right in (("prodcts", "products"), ("cusotmers", "customers"), ("ordres", "orders")):
        linked = linker.link(f"show the {wrong} please")
        assert right in linked.text.split() and (wrong, right) in linked.repaired
    assert linker.link("how many zyxwvq do we have").unknown == ("zyxwvq",)


def test_long_and_strange_questions(linker: Linker) -> None:
    assert len(linker.link("customers in Paris " * 600).text) <= 2100
    assert len(linker.link("x" * 10_000).text) <= 2000
    assert len(linker.link("Paris Berlin Madrid Rome London Vienna Oslo").hints) <= MOST_HINTS


@given(st.text(max_size=120) | st.from_regex(r"[a-zA-Z0-9 '\"().,;%$|=-]{0,80}", fullmatch=True))
def test_no_text_crashes_and_linking_is_stable(linker: Linker, question: str) -> None:
    linked = linker.link(question)
    assert linker.link(question) == linked
    known = {value for texts in linker._values.values() for value in texts}
    assert all(hint.value in known for hint in linked.hints)


def test_a_linked_question_links_to_itself(linker: Linker) -> None:
    for question in ("How many custmers live in paris?", "top five products", "cancelled orders in May 2024"):
        once = linker.link(question)
        assert linker.link(once.text).prompt == once.prompt


def test_values_of_a_statement_are_those_of_the_question(linker: Linker) -> None:
    linked = linker.link("customers in Paris")
    wrong = "SELECT name FROM customers JOIN cities USING (city_id) WHERE cities.name = 'Parix'"
    assert snapped(linked, wrong) == wrong.replace("Parix", "Paris")
    right = wrong.replace("Parix", "Paris")
    assert snapped(linked, right) == right
    other = "SELECT name FROM products WHERE brand = 'Acme' AND name LIKE '%x%' AND price > 3"
    assert snapped(linked, other) == other
    days = "SELECT order_id FROM orders WHERE order_date = '2024-05-01'"
    assert snapped(linker.link("orders of 1 May 2024"), days) == days


@given(
    st.text(alphabet="abcdefghij' %_-0123456789", max_size=12),
    st.sampled_from(["cities.name", "name", "country", "orders.status"]),
    st.sampled_from(["=", "!=", "LIKE"]),
)
def test_snapping_never_invents_a_value(linker: Linker, value: str, column: str, operator: str) -> None:
    linked = linker.link("cancelled orders of customers in Paris and Berlin")
    sql = f"SELECT * FROM cities WHERE {column} {operator} '{value.replace(chr(39), chr(39) * 2)}'"
    after = re.findall(r"'((?:[^']|'')*)'", snapped(linked, sql))
    allowed = {value, *(hint.value for hint in linked.hints)}
    assert {text.replace("''", "'") for text in after} <= allowed


def test_a_disguise_is_the_same_in_question_and_statement(linker: Linker) -> None:
    linked = linker.link("customers in Paris")
    sql = "SELECT name FROM customers JOIN cities USING (city_id) WHERE cities.name = 'Paris'"
    prompt, other = disguised(linked, sql, lambda hint: "Qux's")
    assert prompt == "customers in Qux's | cities.name = 'Qux''s'" and other == sql.replace("'Paris'", "'Qux''s'")
    assert disguised(linked, sql, lambda hint: None) == (linked.prompt, sql)
    unused = "SELECT name FROM customers"
    assert disguised(linked, unused, lambda hint: "Qux") == (linked.prompt, unused)
