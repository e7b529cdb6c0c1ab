"""Questions as people ask them: for every database they run, are said whole, and repeat with their seed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql import Text2SQL
from quatrain.tasks.text2sql.asking.asker import REFUSAL, Asked, Asker
from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.people import packaged, words
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.values import HeldOut

MUSIC = (
    "CREATE TABLE Artist (ArtistId INTEGER PRIMARY KEY, Name TEXT)",
    "CREATE TABLE Album (AlbumId INTEGER PRIMARY KEY, Title TEXT, ArtistId INTEGER REFERENCES Artist)",
    "CREATE TABLE Track (TrackId INTEGER PRIMARY KEY, Name TEXT, AlbumId INTEGER REFERENCES Album, Composer TEXT, "
    "Milliseconds INTEGER, UnitPrice REAL, MediaType TEXT)",
    "CREATE TABLE Customer (CustomerId INTEGER PRIMARY KEY, FirstName TEXT, LastName TEXT, Country TEXT)",
    "CREATE TABLE Invoice (InvoiceId INTEGER PRIMARY KEY, CustomerId INTEGER REFERENCES Customer, InvoiceDate TEXT, "
    "Total REAL)",
    "CREATE TABLE InvoiceLine (InvoiceLineId INTEGER PRIMARY KEY, InvoiceId INTEGER REFERENCES Invoice, "
    "TrackId INTEGER REFERENCES Track, UnitPrice REAL, Quantity INTEGER)",
)
"""A shop of music in CamelCase, as Chinook."""


def filled(count: int = 60) -> list[str]:
    """Rows of the shop of music."""
    each = range(1, count + 1)
    rows = {
        "Artist": [f"({n}, 'Band {n}')" for n in each],
        "Album": [f"({n}, 'Record {n}', {n % 20 + 1})" for n in each],
        "Track": [f"({n}, 'Song {n}', {n % 30 + 1}, 'Writer {n % 9}', {n * 3001}, 0.99, '{'MPEG AAC'.split()[n % 2]}')"
                  for n in each],
        "Customer": [f"({n}, 'Ann{n}', 'O''Hara{n}', '{'Brazil France Norway'.split()[n % 3]}')" for n in each],
        "Invoice": [f"({n}, {n % 25 + 1}, '20{20 + n % 4}-0{n % 9 + 1}-11', {n * 0.75})" for n in each],
        "InvoiceLine": [f"({n}, {n % 40 + 1}, {n % 50 + 1}, 0.99, {n % 5 + 1})" for n in each],
    }  # fmt: skip
    return [f"INSERT INTO {table} VALUES {', '.join(lines)}" for table, lines in rows.items()]


@pytest.fixture(scope="module", params=["shop", "music", "odd"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param != "music":
        return Path(request.getfixturevalue(request.param))
    make: Callable[..., Path] = request.getfixturevalue("make")
    return make(tmp_path_factory.mktemp("music") / "music.sqlite", *MUSIC, *filled())


def asked(path: Path, count: int, seed: int = 0) -> list[Asked]:
    schema = introspect(path)
    asker = Asker(schema, Material(schema, HeldOut(0, 0.05)), random.Random(seed))
    drawn = (asker.ask() for _ in range(count))
    return [each for each in drawn if each is not None]


def test_every_statement_runs_and_every_question_is_whole(database: Path) -> None:
    questions = asked(database, 1200)
    assert len(questions) > 650 and len({each.question for each in questions}) > 0.8 * len(questions)
    kinds = Counter(each.kind for each in questions)
    assert len(kinds) > 10 and kinds["refusal"] > 20
    empty = 0
    with Connection(database) as connection:
        for each in questions:
            assert not re.search(r"[{}]|  |None", each.question) and each.question == each.question.strip(), each
            assert (each.kind == "refusal") == (each.sql == REFUSAL)
            result = connection.execute(each.sql)
            assert result.error is None, each
            empty += not result.rows
    assert empty < 0.25 * len(questions)


QUESTIONS = """
import random, sys
from quatrain.tasks.text2sql.asking.asker import Asker
from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.values import HeldOut

schema = introspect(sys.argv[1])
asker = Asker(schema, Material(schema, HeldOut(0, 0.05)), random.Random(0))
print([asker.ask() for _ in range(1500)])
"""


def test_a_seed_gives_the_same_questions_in_every_process(shop: Path) -> None:
    command = [sys.executable, "-c", QUESTIONS, str(shop)]
    one, other = (
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True)
        for seed in ("1", "2")
    )
    assert one.stdout == other.stdout and "JOIN" in one.stdout


def test_a_seed_gives_the_same_questions(database: Path) -> None:
    assert asked(database, 150, 7) == asked(database, 150, 7)
    assert asked(database, 150, 7) != asked(database, 150, 8)


def test_values_stand_in_question_and_statement_alike(shop: Path) -> None:
    """A text that a statement compares for equality is said in the question, but for small sets that have words."""
    said = total = 0
    for each in asked(shop, 1500):
        for value in re.findall(r"name = '((?:[^']|'')+)'", each.sql):
            total += 1
            said += value.replace("''", "'").lower() in each.question.lower()
    assert total > 100 and said > 0.9 * total


def test_training_holds_no_question_of_people(shop: Path) -> None:
    from quatrain.data.settings import DataSettings
    from quatrain.tasks.task import GenerateSettings
    from quatrain.tasks.text2sql.task import SPEC

    settings = GenerateSettings(shop.parent, held_out=20)
    with SPEC.generate(DataSettings(database=str(shop), examples=4000), settings) as task:
        people = {words(each.question) for each in packaged("shop", "dev")} - {""}
        assert people and not people & {words(each.question) for each in task.splits["train"]}
        read = {words(each.prompt.partition(" | ")[0]) for each in task.splits["train"]}
        assert not people & read
        assert not people & {words(text.partition(" | ")[0]) for text in task.documents()}


def test_pretraining_texts_hold_answers_only_where_they_are_asked_for(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quatrain.data.settings import DataSettings
    from quatrain.tasks.task import GenerateSettings
    from quatrain.tasks.text2sql.task import SPEC

    pairs = {}
    for answers in (False, True):
        settings = GenerateSettings(shop.parent, held_out=20)
        with SPEC.generate(DataSettings(database=str(shop), examples=600, answers=answers), settings) as task:
            pairs[answers] = sum(bool(re.match(r"Question: .+\nSQL: SELECT ", text)) for text in task.documents())
            person = packaged("shop", "dev")[0]
            texts = [f"Question: {person.question}\nSQL: {person.sql}", "Question: how many kettles\nSQL: SELECT 1"]
            monkeypatch.setattr(task.dataset, "documents", lambda texts=texts, **_: iter(texts))
            assert list(task.documents()) == texts[1:]
    assert pairs[False] == 0 and pairs[True] > 300


def test_a_database_without_names_gets_no_questions_of_people(tmp_path: Path, make: Callable[..., Path]) -> None:
    numbers = make(tmp_path / "n.db", "CREATE TABLE t (a INTEGER, b REAL)", "INSERT INTO t VALUES (1, 2.5), (3, 4.5)")
    try:
        made = Text2SQL.build(numbers, examples=20, held_out=2, practice=2, development=2)
    except InputError:
        return
    assert all(each.sql.startswith("SELECT") for each in made.train)
