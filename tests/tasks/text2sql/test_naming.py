from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.tasks.text2sql.naming import (
    KEYWORDS,
    is_plural,
    label,
    plural,
    plural_label,
    quote,
    singular,
    with_article,
)


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("InvoiceLine", "invoice line"), ("order_lines", "order lines"), ("CITY_NAME", "city name"),
        ("unit price", "unit price"), ("HTTPServer", "http server"), ("it's", "it s"), ("ÜberMaß", "über maß"),
        ("employees2", "employees2"), ("___", "value"), ("UnitPriceEUR", "unit price eur"),
    ],
)  # fmt: skip
def test_labels_are_words_in_lower_case(identifier: str, expected: str) -> None:
    assert label(identifier) == expected


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("city", "cities"), ("order line", "order lines"), ("person", "people"), ("address", "addresses"),
        ("category", "categories"), ("box", "boxes"), ("status", "statuses"), ("boy", "boys"), ("branch", "branches"),
        ("movie", "movies"), ("purchase", "purchases"), ("dish", "dishes"), ("album", "albums"),
        ("series", "series records"),
    ],
)  # fmt: skip
def test_tables_become_singular_and_plural(one: str, many: str) -> None:
    assert plural(one) == many
    if "record" not in many:
        assert singular(many) == one
        assert plural(many) == many
        assert singular(one) == one


def test_articles_follow_the_sound() -> None:
    phrases = ["price", "order date", "unit price", "hour", "points", "stock", "email", "user name", "uninvited guest"]
    assert [with_article(phrase) for phrase in phrases] == [
        "a price", "an order date", "a unit price", "an hour", "points", "a stock", "an email", "a user name",
        "an uninvited guest",
    ]  # fmt: skip
    assert is_plural("points")
    assert not is_plural("status")
    assert plural_label("country") == "countries"
    assert plural_label("points") == "points"
    assert plural_label("number of hosts") == "numbers of hosts"
    assert not is_plural("number of hosts")
    assert singular("participants in events") == "participant in events"
    assert plural("point of interest") == "points of interest"
    assert plural_label("date opened") == "dates opened"


def test_every_keyword_of_sqlite_can_name_a_column() -> None:
    connection = sqlite3.connect(":memory:")
    for word in sorted(KEYWORDS):
        name = quote(word)
        connection.execute(f"CREATE TABLE {name} ({name} INTEGER)")
        connection.execute(f"INSERT INTO {name} VALUES (7)")
        assert connection.execute(f"SELECT {name}, {name}.{name} FROM {name} WHERE {name} = 7").fetchone() == (7, 7)
        connection.execute(f"DROP TABLE {name}")
    connection.close()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_quoting_brings_any_name_back(name: str) -> None:
    if name.lower().startswith("sqlite_"):
        return
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE t ({quote(name)} INTEGER)")
    assert connection.execute("SELECT name FROM pragma_table_info('t')").fetchone() == (name,)
    connection.execute("INSERT INTO t VALUES (5)")
    assert connection.execute(f"SELECT {quote(name)} FROM t").fetchone() == (5,)
    connection.close()


@given(st.text(max_size=30))
def test_labels_hold_nothing_that_a_template_could_mistake(name: str) -> None:
    assert not set(label(name)) & set("{}'\"%_.,")
    assert label(name)
