"""Questions by people: their SQL, how answers to them are judged, and that no stage trains on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.data.settings import DataSettings
from quatrain.evaluation.evaluate import judge
from quatrain.tasks.task import GenerateSettings, generated
from quatrain.tasks.text2sql import Connection, create_shop
from quatrain.tasks.text2sql.databases import Databases
from quatrain.tasks.text2sql.judge import accepted_match
from quatrain.tasks.text2sql.people import (
    DEVELOPMENT,
    PEOPLE,
    REFUSE,
    packaged,
    read_questions,
    sets_for,
    words,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_shop(tmp_path_factory.mktemp("people") / "shop.sqlite")


@pytest.fixture(scope="module")
def task(shop: Path):
    with generated(DataSettings(database="shop", examples=400), GenerateSettings(shop.parent, held_out=6)) as task:
        yield task


def test_every_accepted_statement_about_the_shop_returns_rows(shop: Path):
    questions = packaged("shop", "test") + packaged("shop", "dev")
    assert len({words(each.question) for each in questions}) == len(questions) >= 120
    with Connection(shop) as connection:
        for each in questions:
            for sql in each.accepted:
                result = connection.execute(sql)
                assert result.error is None and result.rows, f"{each.question}: {sql}: {result.error}"
                assert each.score(connection, sql).correct, each.question


def test_the_halves_have_the_same_kinds_of_question():
    halves = [Counter(each.kind for each in packaged("shop", half)) for half in ("dev", "test")]
    assert set(halves[0]) == set(halves[1]) and "" not in halves[0]
    assert all(abs(halves[0][kind] - halves[1][kind]) <= 1 for kind in halves[0])
    assert len({each.asker for half in ("dev", "test") for each in packaged("shop", half)}) == 8


def test_questions_to_refuse_accept_nothing(shop: Path):
    questions = packaged("refuse", "test") + packaged("refuse", "dev")
    assert len(questions) >= 30 and not any(each.accepted for each in questions)
    assert max(len(each.question) for each in questions) >= 10_000
    with Connection(shop) as connection:
        assert questions[0].score(connection, "").correct
        assert not questions[0].score(connection, "SELECT 1").correct
        assert not packaged("shop", "dev")[0].score(connection, "").correct


@pytest.mark.parametrize("name", ["chinook", "hr_1", "wine_1"])
def test_statements_about_other_databases_return_rows(name: str, shared: Path):
    own = shared / name / f"{name}.sqlite"
    path = own if own.is_file() else Databases(shared / "spider" / "databases.zip").path(name)
    assert [len(packaged(name, half)) for half in ("dev", "test")] == [10, 10]
    with Connection(path) as connection:
        sets, notes = sets_for(path, connection)
        assert list(sets) == [PEOPLE, DEVELOPMENT] and not notes
        for each in sets[PEOPLE] + sets[DEVELOPMENT]:
            assert all(each.score(connection, sql).correct for sql in each.accepted), each.question


def test_what_counts_as_right(shop: Path):
    top = ["SELECT name, price FROM products ORDER BY price DESC LIMIT 3"]

    def right(sql: str, ordered: bool = False, extra: bool = False, accepted: list[str] = top) -> bool:
        return accepted_match(connection, accepted, sql, ordered=ordered, extra=extra).correct

    with Connection(shop) as connection:
        swapped = "SELECT price, name FROM products ORDER BY price DESC LIMIT 3"
        assert right(swapped, ordered=True)
        assert not right(swapped.replace("price, name", "name"))
        more = swapped.replace("price, name", "*")
        assert right(more, extra=True) and not right(more)
        turned = f"SELECT * FROM ({swapped}) ORDER BY price"
        assert right(turned) and not right(turned, ordered=True)
        assert not right("SELECT name, stock FROM products ORDER BY price DESC LIMIT 3")
        assert not right("SELECT nam FROM products") and not right("DELETE FROM products")
        count = ["SELECT 99", "SELECT COUNT(*) FROM cities"]
        assert right("SELECT COUNT(city_id) FROM cities", accepted=count)
        assert not right("SELECT COUNT(*) FROM orders", accepted=count)
        nothing = ["SELECT COUNT(*) FROM orders WHERE order_id < 0"]
        assert right("select count(*) from orders where order_id < 0;", accepted=nothing)
        assert not right("SELECT COUNT(*) FROM orders WHERE order_id > 9999999", accepted=nothing)
        assert not accepted_match(connection, ["SELECT no"], "SELECT 1", ordered=False, extra=False).judged


def test_equal_rows_are_counted_and_columns_are_kept_together(shop: Path):
    pairs = ["VALUES (1, 2), (2, 1)"]
    with Connection(shop) as connection:
        assert accepted_match(connection, pairs, "VALUES (2, 1), (1, 2)", ordered=False, extra=False).correct
        assert not accepted_match(connection, pairs, "VALUES (1, 1), (2, 2)", ordered=False, extra=False).correct
        assert not accepted_match(
            connection, ["VALUES (1), (1), (2)"], "VALUES (1), (2), (2)", ordered=False, extra=False
        ).correct


def test_people_come_first_and_generated_sets_are_labelled(task):
    names = list(task.held_out)
    assert names[:3] == [PEOPLE, DEVELOPMENT, REFUSE]
    assert len(names) == 6 and all(name.startswith("generated: ") for name in names[3:])


def test_no_stage_trains_on_questions_by_people(task):
    asked = {words(each.question) for half in ("dev", "test") for each in packaged("shop", half)}
    taught = {words(each.question) for split in task.splits.values() for each in split}
    assert not asked & taught
    for text in task.documents():
        assert words(text.partition(" | ")[0]) not in asked
    # A question that the generator writes by chance is left out.
    texts = list(task.documents())
    written = next(text for text in texts if text.startswith("how many") and " | " not in text)
    asked = [written.upper(), task.splits["train"][0].question]
    path = task.path.with_name("asked.jsonl")
    path.write_text("\n".join(json.dumps({"question": each, "query": "SELECT 1"}) for each in asked))
    settings = GenerateSettings(task.path.parent, held_out=6, questions=str(path))
    with generated(DataSettings(database="shop", examples=400), settings) as other:
        assert next(iter(other.held_out)) == PEOPLE and len(other.held_out[PEOPLE]) == 2
        assert asked[1] not in [each.question for each in other.splits["train"]]
        assert len(other.splits["train"]) < 400
        assert written in texts and written not in list(other.documents())


def test_kinds_confidence_and_no_samples_of_the_scored_half(task):
    for name, shown in ((PEOPLE, 0), (DEVELOPMENT, 12)):
        examples = task.held_out[name]
        answers = [each.sql if place % 2 else "SELECT -1" for place, each in enumerate(examples)]
        sure = [0.9 if place < 20 else 0.1 for place in range(len(examples))]
        evaluation = judge(task, name, examples, answers, sure)
        # `snapped` changes two right statements of the scored half, both with a negation.
        count = len(examples)  # outside of the assertion, whose message would show the questions
        right = round(evaluation.main * count)
        assert count // 2 - (2 if name == PEOPLE else 0) <= right <= count // 2
        assert sum(each["right"] for each in evaluation.kinds.values()) == right
        assert sum(each["count"] for each in evaluation.kinds.values()) == count
        assert evaluation.scores["confident_share"] == 20 / count
        assert evaluation.scores["confident_accuracy"] == pytest.approx(0.5, abs=0.1)
        assert len(evaluation.samples) == shown
    refused = judge(task, REFUSE, task.held_out[REFUSE], [""] * len(task.held_out[REFUSE]))
    assert list(refused.scores) == ["refusal_accuracy", "count"] and refused.main == 1


def test_a_file_of_questions(shop: Path, tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    records = [
        {"question": "how many cities", "query": "SELECT COUNT(*) FROM cities"},
        {"question": "who lives on the moon", "query": "SELECT name FROM cities WHERE name = 'moon'"},
        {"question": "drop it", "accepted": []},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    with Connection(shop) as connection:
        sets, notes = sets_for(shop, connection, str(path))
    assert {name: len(each) for name, each in sets.items()} == {PEOPLE: 1, REFUSE: 1}
    assert notes == [f"{PEOPLE}: 1 of 2 left out: their own SQL fails or returns no rows"]
    path.write_text('{"question": 5}\n\n{"question": "a", "accepted": "SELECT 1"}\nno\n')
    with pytest.raises(InputError) as error:
        read_questions(path)
    assert [problem.split(":")[1] for problem in error.value.problems] == ["1", "3", "4"]
    with pytest.raises(InputError, match="Cannot read"):
        sets_for(shop, Connection(shop), str(tmp_path / "none.jsonl"))


def test_another_database_of_the_same_name_has_no_questions(tmp_path: Path):
    import sqlite3
    from contextlib import closing

    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE products (name TEXT)")
        database.commit()
    with Connection(path) as connection:
        assert sets_for(path, connection) == ({}, [])


def test_a_limit_spreads_over_the_set(shop: Path):
    with Connection(shop) as connection:
        sets, _ = sets_for(shop, connection, limit=7)
    assert [len(each) for each in sets.values()] == [7, 7, 7]
    assert len({each.kind for each in sets[PEOPLE]}) >= 5
