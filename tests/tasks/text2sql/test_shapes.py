from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from quick_set import some

from quatrain.tasks.text2sql import Example, Text2SQL
from quatrain.tasks.text2sql.frames import FRAMES
from quatrain.tasks.text2sql.shapes import SHAPES


def words(frame: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", frame).lower()))


def check(database: Path, examples: list[Example]) -> float:
    """Run the SQL of every example; the share of answers that hold anything."""
    with closing(sqlite3.connect(database)) as connection:
        full = 0
        for example in examples:
            rows = connection.execute(example.sql).fetchmany(5)
            full += any(cell for row in rows for cell in row)
    return full / len(examples)


def english(example: Example) -> None:
    question = example.question
    assert not re.search(r"[{}]|\bNone\b|  | [.,?]| a [aeio]|\ba points\b", question.split('"')[0]), question
    assert len(question) < 260
    # every value stands in the question letter for letter; months are said in words
    for value in example.values:
        if "strftime('%Y-%m'" not in example.sql:
            assert value in question, example


def meanings(made: Text2SQL) -> dict[str, set[str]]:
    """All SQL that each question with the frames' sentences stands for, as a model reads it."""
    found: dict[str, set[str]] = {}
    for example in [*framed(made), *made.practice, *(each for group in made.held_out.values() for each in group)]:
        found.setdefault(example.prompt, set()).add(example.sql)
    return found


def framed(made: Text2SQL) -> list[Example]:
    """The training questions with the frames' sentences; `test_asking` is about those as people ask."""
    return [example for example in made.train if not example.phrasing.startswith("asked/")]


def test_there_are_enough_shapes_and_phrasings() -> None:
    assert len(SHAPES) >= 45
    for shape in SHAPES.values():
        family = FRAMES[shape.family]
        assert len(family.train) >= 6
        assert len(family.held_out) >= 2
        assert len(set(family.train + family.held_out)) == len(family.train) + len(family.held_out)
    assert {shape.family for shape in SHAPES.values()} == set(FRAMES)


def test_held_out_frames_are_new_sentences_of_known_words() -> None:
    known = set().union(*(words(frame) for family in FRAMES.values() for frame in family.train))
    trained = {frame.rstrip(".?").lower() for family in FRAMES.values() for frame in family.train}
    for family in FRAMES.values():
        for frame in family.held_out:
            assert words(frame) <= known, frame
            assert frame.rstrip(".?").lower() not in trained, frame


def test_every_shape_fits_the_shop(data: Text2SQL, shop: Path) -> None:
    assert set(data.combinations()) == set(SHAPES)
    assert {example.shape for example in framed(data)} == set(SHAPES)
    for example in framed(data):
        english(example)
    check(shop, data.train + data.practice)
    assert check(shop, data.development) > 0.95


def test_a_question_means_one_statement(data: Text2SQL) -> None:
    found = meanings(data)
    assert len(found) > 2500
    assert [question for question, statements in found.items() if len(statements) > 1] == []


def test_odd_names_give_questions_that_run(odd: Path) -> None:
    made = Text2SQL.build(odd, examples=1500, practice=200, held_out=50)
    assert len(made.combinations()) > 40
    for example in framed(made):
        english(example)
    check(odd, made.train + made.practice)
    assert check(odd, made.development) > 0.8


@pytest.mark.parametrize("name", some(["geography", "chinook", "restaurants"], ["geography"]))
def test_real_databases_give_questions_that_run(shared: Path, name: str) -> None:
    path = shared / name / f"{name}.sqlite"
    made = Text2SQL.build(path, examples=2000, practice=300, held_out=60)
    assert len(made.combinations()) >= 40
    for example in made.train:
        assert "{" not in example.question
    check(path, made.train + made.practice)
    assert check(path, made.development) > 0.9
    assert sum(len(statements) > 1 for statements in meanings(made).values()) <= 2
    assert all(len(examples) == 60 for examples in made.held_out.values()), made.notes
