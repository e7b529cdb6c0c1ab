from __future__ import annotations

import random
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.tasks.text2sql.values import (
    HeldOut,
    clear,
    literal,
    made_up_day,
    made_up_number,
    made_up_text,
    number_text,
    shown,
    skeleton,
    usable,
)


@given(
    st.one_of(st.text(max_size=50), st.integers(-(10**11), 10**11), st.decimals(-(10**6), 10**6, places=2).map(float))
)
def test_literals_come_back_from_sqlite(value: str | int | float) -> None:
    if not usable(value):
        return
    connection = sqlite3.connect(":memory:")
    assert connection.execute(f"SELECT {literal(value)} = ?", (value,)).fetchone() == (1,)
    connection.close()


@given(st.text(max_size=45), st.integers())
def test_a_value_stands_letter_for_letter_in_the_question(value: str, seed: int) -> None:
    if usable(value):
        assert shown(value, random.Random(seed)).strip('"') == value


def test_numbers_are_written_plainly() -> None:
    assert [number_text(value) for value in (3, 3.0, 19.9, 0.25, -4.5, 1e6)] == [
        "3",
        "3",
        "19.9",
        "0.25",
        "-4.5",
        "1000000",
    ]


@pytest.mark.parametrize(
    "value", ["O'Brien", "Aix-en-Provence", "Frankfurt am Main", "Coffee & Tea", "'s-Hertogenbosch"]
)
def test_plain_values_need_no_quotes(value: str) -> None:
    assert clear(value)


@pytest.mark.parametrize("value", ["Love and Peace", "One (Live)", "a, b", "x" + " y" * 6])
def test_values_with_words_of_the_sentence_are_quoted(value: str) -> None:
    assert not clear(value)
    assert shown(value, random.Random(0)) == f'"{value}"'


def test_held_out_values_are_found_as_whole_words_only() -> None:
    held = HeldOut(0)
    held.add(["Paris", "O'Hara", "19.9", "2023-05-14", "450", "new york"])
    found = ["in Paris?", "name = 'O''Hara'", "above 19.9", "on 2023-05-14", "stock < 450)", "to new york."]
    free = ["Parisian", "comParis", "119.9", "19.95", "2023-05-1", "4500", "1450", "New York", "new yorker", "0.450"]
    assert all(held.found(text) for text in found)
    assert not any(held.found(text) for text in free)


def test_the_choice_of_held_out_values_depends_on_the_seed_alone() -> None:
    words = [f"word {number}" for number in range(5000)]
    first, again, other = HeldOut(1, 0.1), HeldOut(1, 0.1), HeldOut(2, 0.1)
    assert first.draw(words) == again.draw(reversed(words)) != other.draw(words)
    assert 400 < len(first.draw(words)) < 600
    assert set(first.draw(words[:2500])) <= set(first.draw(words))
    assert len(first.draw(words[:3])) == 1


def test_skeletons_keep_columns_and_forget_values() -> None:
    one = skeleton("SELECT name FROM t WHERE a = 'O''Hara' AND price > 19.9 ORDER BY b DESC LIMIT 3")
    assert one == skeleton("SELECT name FROM t WHERE a = 'x' AND price < 2 ORDER BY b ASC LIMIT 12")
    assert one != skeleton("SELECT name FROM t WHERE a = 'x' AND cost < 2 ORDER BY b ASC LIMIT 12")
    year = "SELECT 1 FROM t WHERE strftime('%Y', d) = '2023'"
    assert skeleton(year) != skeleton(year.replace("%Y", "%Y-%m"))
    assert skeleton(year) == skeleton(year.replace("2023", "2024"))


@given(st.integers())
def test_made_up_values_can_stand_in_a_question(seed: int) -> None:
    rng = random.Random(seed)
    assert usable(made_up_text(rng, ["Ann O'Brien", "Coffee & Tea", "TX", "new york"]))
    assert usable(made_up_number(rng, 1234))
    assert usable(made_up_number(rng, 19.9))
    assert sqlite3.connect(":memory:").execute(
        "SELECT date(?)", (day := made_up_day(rng, "2021-02-03"),)
    ).fetchone() == (day,)
