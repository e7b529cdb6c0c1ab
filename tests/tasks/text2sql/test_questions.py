"""Questions to many databases: the files by their names, the schema as a model reads it, one way to write SQL."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.data.corpus import Corpus, DataParts
from quatrain.data.settings import DataSettings
from quatrain.evaluation.evaluate import judge
from quatrain.tasks.task import spec_of_source
from quatrain.tasks.text2sql import Connection
from quatrain.tasks.text2sql.databases import Databases, schema_text
from quatrain.tasks.text2sql.questions import SchemaQuestion, SQLQuestions, databases_of
from quatrain.tasks.text2sql.statements import plain, statement_of

SINGERS = """
    CREATE TABLE Singer (Singer_ID INTEGER PRIMARY KEY, Name TEXT, Country TEXT, "Net Worth" REAL);
    CREATE TABLE Song (Song_ID INTEGER PRIMARY KEY, Title TEXT, Singer_ID INTEGER REFERENCES Singer(Singer_ID));
    INSERT INTO Singer VALUES (1, 'Ann', 'France', 3.5), (2, 'Bo', 'Peru', 1.0), (3, 'Cy', 'Peru', 2.0);
    INSERT INTO Song VALUES (1, 'Rain', 1), (2, 'Sun', 1), (3, 'Fog', 2);
"""
PETS = "CREATE TABLE pets (name TEXT, age INTEGER); INSERT INTO pets VALUES ('Rex', 3), ('Tom', 5);"
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, make: Make) -> Path:
    """As Spider has them: a folder for one database, a file for the other."""
    (tmp_path / "dbs" / "Singers").mkdir(parents=True)
    make(tmp_path / "dbs" / "Singers" / "Singers.sqlite", SINGERS)
    make(tmp_path / "dbs" / "pets.db", PETS)
    return tmp_path / "dbs"


def test_databases_are_found_by_their_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))
    packed = tmp_path / "dbs.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(folder / "Singers" / "Singers.sqlite", "../../Singers.sqlite")
        archive.write(folder / "pets.db", "some/pets.db")
    single = f"{folder / 'pets.db'} + {folder / 'Singers' / 'Singers.sqlite'}"
    for source in (folder, packed, single):
        with Databases(source) as found:
            assert len(found) == 2 and "singers" in found and "PETS" in found and "other" not in found
            assert found.path("SINGERS").name == "Singers.sqlite"
            assert found.connection("pets").execute("SELECT count(*) FROM pets").rows == ((2,),)
            with pytest.raises(InputError, match=r"there is no database pet in .*; did you mean pets"):
                found.path("pet")
            with pytest.raises(InputError, match="without a name"):
                found.path("")
    # Whatever a zip file calls its members, they are put into the cache.
    kept = [path.relative_to(tmp_path / "cache").parts for path in (tmp_path / "cache").rglob("*.*")]
    assert sorted((parts[0], parts[2]) for parts in kept) == [("databases", "Singers.sqlite"), ("databases", "pets.db")]
    with Databases(folder / "pets.db") as one:
        assert one.path("") == folder / "pets.db"
    (tmp_path / "none").mkdir()
    for wrong, said in (("none", "has no database"), ("nowhere", "no database at"), ("a.txt", "not an SQLite")):
        (tmp_path / "a.txt").write_text("no database at all")
        with pytest.raises(InputError, match=said):
            Databases(tmp_path / wrong)


def test_the_schema_is_a_line_for_each_table(folder: Path, make: Make, tmp_path: Path) -> None:
    assert schema_text(folder / "Singers" / "Singers.sqlite") == (
        'singer: singer_id, name, country, "net worth"\n'
        "song: song_id, title, singer_id\n"
        "song.singer_id = singer.singer_id"
    )
    with pytest.raises(InputError, match="no tables"):
        schema_text(make(tmp_path / "empty.sqlite", "CREATE VIEW one AS SELECT 1"))


@pytest.mark.parametrize(
    ("written", "taught"),
    [
        ("SELECT  count(*) FROM Singer ;", "select count(*) from singer"),
        ('SELECT Name FROM Singer WHERE Country = "Peru"', "select name from singer where country = 'Peru'"),
        ('SELECT "Net Worth" FROM Singer', 'select "net worth" from singer'),
        ("SELECT T1.Name ,  T2.Title FROM Singer AS T1 JOIN Song AS T2 ON T1.Singer_ID  =  T2.Singer_ID",
         "select singer.name, song.title from singer join song on singer.singer_id = song.singer_id"),
        ("SELECT T1.Name FROM Singer AS T1 JOIN Singer AS T2 ON T1.Country = T2.Country WHERE T1.Name != T2.Name",
         "select t1.name from singer as t1 join singer as t2 on t1.country = t2.country where t1.name != t2.name"),
        ("SELECT a.Name FROM Singer AS a WHERE a.Singer_ID = (SELECT max(b.Singer_ID) FROM Singer AS b)",
         "select singer.name from singer where singer.singer_id = (select max(singer.singer_id) from singer)"),
        ("SELECT Nome FROM  Singer;", "SELECT Nome FROM Singer"),
    ],
)  # fmt: skip
def test_sql_is_taught_in_one_way(folder: Path, written: str, taught: str) -> None:
    with Connection(folder / "Singers" / "Singers.sqlite") as connection:
        assert plain(connection, written) == taught
        assert connection.execute(taught).rows == connection.execute(written).rows


def test_a_correlated_query_keeps_its_aliases(folder: Path) -> None:
    """Without them the inner condition would be true of every row, which an empty answer would not show."""
    written = (
        "SELECT t1.name FROM singer AS t1 WHERE t1.singer_id < 0 AND NOT EXISTS "
        "(SELECT 1 FROM singer AS t2 WHERE t2.singer_id > t1.singer_id)"
    )
    with Connection(folder / "Singers" / "Singers.sqlite") as connection:
        assert "as t2 where t2.singer_id > t1.singer_id" in plain(connection, written)


def test_the_statement_is_taken_out_of_what_a_chat_model_says() -> None:
    assert statement_of("SELECT 1\n") == "SELECT 1"
    assert statement_of("Here it is:\n```sql\nSELECT 1\n```\nIt counts.") == "SELECT 1"
    assert statement_of("```\nSELECT 1") == "SELECT 1"


def questions(path: Path, *rows: tuple[str, str, str]) -> Path:
    path.write_text("".join(json.dumps({"db_id": name, "question": q, "query": sql}) + "\n" for name, q, sql in rows))
    return path


def parts(source: Path | str, **settings: str) -> DataParts:
    return DataParts(DataSettings(source=str(source), **settings))


def test_what_cannot_be_asked_is_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    source = questions(
        tmp_path / "q.jsonl",
        ("pets", "How many pets?", "SELECT count(*) FROM pets"),
        ("gone", "How many?", "SELECT 1"),
        ("pets", "How heavy?", "SELECT weight FROM pets"),
        ("Singers", "Who?", "SELECT Name FROM Singer"),
    )
    assert spec_of_source(parts(source)) and spec_of_source(parts("the-verdict")) is None
    assert spec_of_source(parts(source, format="chat")) is None
    with pytest.raises(InputError, match="none are named"):
        databases_of(str(source))
    with SQLQuestions(databases_of(str(source), str(folder)), Corpus(source)) as task:
        asked = list(task.read())
        assert [each.sql for each in asked] == ["select count(*) from pets", "select name from singer"]
        assert asked[0].messages[0]["content"].endswith("pets: name, age\nQuestion: How many pets?")
        missing, failed = task.notes
        assert "1 questions left out: no such database: gone (1)" in missing
        assert f"{source}:3: no such column: weight" in failed
        said = ["```sql\nSELECT 2\n```", "SELECT Name FROM Singer ORDER BY Name DESC"]
        judged = judge(task, "q", asked, said)
        assert judged.scores == {"execution_accuracy": 1.0, "exact_match": 0.0, "count": 2}
        broken = judge(task, "q", asked, ["DROP TABLE pets", "select weight"])
        assert broken.scores["execution_accuracy"] == 0
        assert [each["detail"] for each in broken.samples] == [
            "only reading with SELECT is allowed", "no such column: weight"
        ]  # fmt: skip
    with Databases(folder / "pets.db") as one, pytest.raises(InputError, match=r"No question of .* can be asked"):
        list(SQLQuestions(one, Corpus(questions(tmp_path / "other.jsonl", ("gone", "Who?", "SELECT 1")))).read())


def test_notes_are_complete_though_only_some_questions_are_taken(folder: Path, tmp_path: Path) -> None:
    rows = [("pets", "a", "SELECT * FROM nowhere"), ("pets", "b", "SELECT count(*) FROM pets")] * 3
    source = questions(tmp_path / "q.jsonl", *rows)
    with SQLQuestions(Databases(folder), Corpus(source, format="sql")) as task:
        assert len(task.take(1)) == 1
        assert "1 questions left out: their own SQL fails" in task.notes[0]


def test_databases_without_the_tables_or_the_rows(folder: Path, make: Make, tmp_path: Path) -> None:
    rows = [("pets", "a", "SELECT count(*) FROM pets"), ("pets", "b", "SELECT name FROM pets")]
    source = questions(tmp_path / "q.jsonl", *rows)
    other = tmp_path / "other"
    other.mkdir()
    make(other / "pets.sqlite", "CREATE TABLE houses (a)")
    with Databases(other) as databases, pytest.raises(InputError, match="No question of") as raised:
        SQLQuestions(databases, Corpus(source, format="sql")).take()
    assert "no such table: pets" in raised.value.problems[0]
    empty = make(tmp_path / "pets.sqlite", "CREATE TABLE pets (name, age)")
    with SQLQuestions(Databases(empty), Corpus(source, format="sql")) as task:
        assert len(task.take()) == 2
        assert "none of the 2 questions has an answer" in task.notes[0]


def test_preferences_come_from_questions_that_can_be_judged(folder: Path) -> None:
    statements = ("SELECT count(*) FROM pets", "SELECT * FROM gone")
    asked = [SchemaQuestion("q", "", sql, "pets", "") for sql in statements]
    with SQLQuestions(Databases(folder)) as task:
        kept, notes = task.judgeable(asked)
    assert kept == asked[:1]
    assert "1 examples left out" in notes[0] and "no such table: gone" in notes[0]


def test_data_check_runs_each_question(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.cli import main

    good, fails, elsewhere = "SELECT count(*) FROM pets", "SELECT * FROM nowhere", "SELECT 1"
    rows = [("pets", "a", good), ("pets", "b", fails), ("zoo", "c", elsewhere)]
    source = questions(tmp_path / "q.jsonl", *rows)
    assert main(["data", "check", str(source)]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(source), "--databases", str(folder)]) == 2
    out = capsys.readouterr().out
    assert "q.jsonl:2: its own SQL fails on the database pets: no such table: nowhere" in out
    assert "q.jsonl:3: there is no database" in out and "2 faults" in out
    (tmp_path / "text.txt").write_text("nothing to ask", encoding="utf-8")
    assert main(["data", "check", str(tmp_path / "text.txt"), "--databases", str(folder)]) == 2
    assert "--databases: only for questions with SQL" in capsys.readouterr().err


def test_a_question_whose_own_sql_fails_is_not_scored(folder: Path) -> None:
    good = SchemaQuestion("how many?", "", "select count(*) from pets", "pets", "")
    bad = SchemaQuestion("who?", "", "select name from nowhere", "pets", "")
    with SQLQuestions(Databases(folder)) as task:
        judged = judge(task, "x", [good, bad], ["SELECT 2", "SELECT 1"])
        assert judged.scores == {"execution_accuracy": 1.0, "exact_match": 0.0, "count": 1}
        assert len(judged.samples) == 1
        assert "1 examples are not counted" in judged.notes[0] and "no such table: nowhere" in judged.notes[0]
        with pytest.raises(InputError, match="nothing can be judged"):
            judge(task, "x", [bad], ["SELECT 1"])


def test_spider_and_geoquery(shared: Path) -> None:
    """Nearly all statements lose their aliases, and every one keeps its answer."""
    source = "spider-dev + geoquery-new-queries"
    with SQLQuestions(databases_of(source), Corpus(source, format="sql")) as task:
        asked = list(task.read())
        assert len(asked) > 780 and sum(" as " in each.sql for each in asked) < 0.1 * len(asked)
        assert {"concert_singer", "geography"} & {each.database for each in asked}
        judged = judge(task, "all", asked, [each.sql for each in asked])
        baseline = judge(task, "all", asked, task.baseline(asked))
    assert judged.scores["exact_match"] == 1.0
    assert judged.scores["execution_accuracy"] == 1.0
    assert 0 < baseline.scores["execution_accuracy"] < 0.2


def test_the_catalog_takes_some_rows_of_a_file(shared: Path) -> None:
    counts = {name: len(list(Corpus(f"geoquery-{name}"))) for name in ("train", "new-questions", "new-queries")}
    assert counts == {"train": 331, "new-questions": 170, "new-queries": 182}
    both = Corpus("geoquery-train + spider-dev")
    assert both.format == "sql" and len(list(both)) == 331 + 614
    assert Corpus("geoquery-train").fingerprint != Corpus("geoquery-new-queries").fingerprint
