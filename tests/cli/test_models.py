"""The verbs that open a model folder, on a tiny model made here."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path

import pytest
import torch
from tiny_models import llama

from quatrain.cli import main
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO city (name) VALUES (?)", [(f"City {i}",) for i in range(30)])
    return path


def lines(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in texts)))


def answers(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let the model write what the test wants; everything around it is real."""
    from quatrain.generation.engine import Completion, Engine, SamplingParams

    left = list(texts)
    said: list[str] = []

    def generate(engine: Engine, prompts: object, params: SamplingParams, **options: object) -> list[Completion]:
        if params.num_beams == 1:  # a search for other answers gives the same one
            said.append(left.pop(0))
        return [Completion(said[-1], [], "stop", [])]

    monkeypatch.setattr(Engine, "generate", generate)


def test_tokenize_shows_the_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", str(folder), "Hello you", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "".join(found["tokens"]) == "Hello you" and len(found["ids"]) == 9
    assert main(["tokenize", str(folder), "Hello"]) == 0
    assert "5 tokens, 1.00 characters a token" in capsys.readouterr().out


def test_generate_streams_what_it_returns_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(folder), "The ", "--temperature", "1", "--seed", "3", "--max-new-tokens", "12"]
    assert main(words) == 0
    streamed = capsys.readouterr().out
    assert streamed.startswith("The ")
    assert main([*words, "--no-stream"]) == 0
    assert capsys.readouterr().out == streamed
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] + found["text"] + "\n" == streamed
    assert found["finish_reason"] in ("stop", "length") and 1 <= len(found["ids"]) <= 12


def test_new_tokens_beyond_the_context_are_said_to_be_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "The ", "--max-new-tokens", "4321", "--json"]) == 0
    written = capsys.readouterr()
    length = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert "4,321" in written.err and f"cut to {length - 4:,}" in written.err and written.err.count("\n") == 1
    assert len(json.loads(written.out)["ids"]) <= length - 4
    assert main(["generate", str(folder), "The ", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().err == ""


def test_generate_refuses_flags_out_of_range(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "x", "--temperature", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--databases", ""]], ids=["source", "databases"])
def test_evaluate_of_an_empty_name(more: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), "x" if more else "", *more]) == 2
    assert ("databases" if more else "source") in capsys.readouterr().err


def test_evaluate_measures_a_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark night. " * 40)
    assert main(["evaluate", str(folder), str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == found["characters"] - 1
    assert 1.5 < found["loss"] < 7 and found["perplexity"] == pytest.approx(2.718281828 ** found["loss"], rel=1e-6)
    assert main(["evaluate", str(folder), str(text), "--context", "4096"]) == 2
    assert "from 1 to the model's longest, 128" in capsys.readouterr().err


def test_plan_counts_what_the_model_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(folder), "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["parameters"]
    assert counted == model_folder.load(folder).num_parameters()


@pytest.mark.slow
def test_plan_counts_a_recipe_without_making_it(capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.runs.recipe import load

    full = str(Path(__file__).parents[1] / "runs" / "recipes" / "full.toml")
    # GPT-2 has no int8 layers yet, and the full recipe quantizes.
    for recipe, family in ((full, "llama"), ("sherlock", "gpt2")):
        change = f"model.family={family}"
        assert main(["plan", recipe, change, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        loaded = load(recipe, [change])
        with torch.device("meta"):
            model = Model(loaded.model.config(loaded.tokenizer.vocab_size))
        assert found["parameters"] == model.num_parameters()
        assert found["weights"]["bfloat16"] == 2 * found["parameters"]
        assert found["training"]["pretrain"] > 12 * found["parameters"]
    assert main(["plan", str(recipe)]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{% if %}", "not valid Jinja"),
        ("{{ raise_exception('no') }}", "refuses this conversation: no"),
        ("{% for a in range(10**9) %}{% endfor %}", "the chat template was stopped"),
        ([{"name": "rag", "template": "{{ messages }}"}], 'no chat template named "default"'),
    ],
)
@pytest.mark.parametrize("more", [[], ["--db"]])
def test_chat_without_a_usable_template_is_one_error(
    folder: Path, tmp_path: Path, database: Path, template: object, words: str, more: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config = {**config, "chat_template": template} if template else {k: v for k, v in config.items() if k[:4] != "chat"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    lines(monkeypatch, "one", "two", "three")
    assert main(["chat", str(tmp_path), *more, *([str(database)] if more else [])]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("error:") == 1 and not captured.out


def test_chat_goes_on_after_what_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(monkeypatch, "hi", "", "/help", "/rest", "/reset", "größer 你", "/quit", "never read")
    assert main(["chat", str(folder), "--max-new-tokens", "5", "--temperature", "1", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    assert "/schema" in captured.out and "did you mean /reset?" in captured.out
    assert "Traceback" not in captured.err


def test_chat_forgets_the_oldest_turns_when_the_context_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(monkeypatch, *["tell me something"] * 6)
    assert main(["chat", str(folder), "--max-new-tokens", "10", "--json"]) == 0
    captured = capsys.readouterr()
    assert len([json.loads(line) for line in captured.out.splitlines()]) == 6, captured.err


def test_a_database_is_questioned_line_by_line(
    folder: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(
        monkeypatch,
        "SELECT name FROM city WHERE id = 3",
        "SELECT nonsense FROM city",
        "DROP TABLE city",
        "SELECT name FROM city",
        "SELECT name FROM city WHERE id = 99",
    )
    lines(monkeypatch, "third?", "x", "y", "all", "none", "/schema")
    assert main(["chat", str(folder), "--db", str(database), "--rows", "10"]) == 0
    out = capsys.readouterr().out
    assert "City 2" in out and "1 row," in out
    assert "This SQL failed: no such column: nonsense" in out
    assert "This SQL failed: only reading with SELECT is allowed" in out
    assert "10 rows (the first 10; there are more)" in out
    assert "no rows" in out
    assert "city: id, name" in out
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM city").fetchone() == (30,)


def test_answers_of_any_width_stay_readable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2,000 columns, long texts, escapes in names and cells."""
    path = tmp_path / "wide.sqlite"
    columns = ", ".join([*(f"c{number} TEXT" for number in range(1999)), '"\x1b[31mred\n"'])
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE wide ({columns})")
        connection.execute(f"INSERT INTO wide VALUES ({', '.join('?' * 2000)})", ["\x1b[2J" + "x" * 9_000] * 2000)
    connection.close()
    answers(monkeypatch, "SELECT * FROM wide", 'SELECT "\x1b[31mred\n" FROM wide')
    lines(monkeypatch, "all", "one", "/schema")
    assert main(["chat", str(folder), "--db", str(path)]) == 0
    out = capsys.readouterr().out
    assert "(40 of 2,000 columns)" in out and "… and 1,960 more" in out
    assert "\\x1b[31mred" in out and "\\x1b[2J" in out
    assert max(map(len, out.splitlines())) < 40 * 70


def test_a_database_is_questioned_by_a_program(
    folder: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, "SELECT id, name FROM city LIMIT 2", "SELEC")
    lines(monkeypatch, "two", "bad")
    assert main(["chat", str(folder), "--db", str(database), "--json"]) == 0
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["columns"] == ["id", "name"] and good["rows"] == [[1, "City 0"], [2, "City 1"]]
    assert good["error"] is None and bad["error"] and bad["rows"] == []


@pytest.mark.parametrize(("content", "part"), [(b"", "is empty"), (b"no database at all", "is not an SQLite database")])
def test_what_is_no_database_is_refused(
    folder: Path, tmp_path: Path, content: bytes, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.sqlite"
    path.write_bytes(content)
    assert main(["chat", str(folder), "--db", str(path)]) == 2
    assert part in capsys.readouterr().err


def test_evaluate_runs_the_sql_that_a_model_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of a stand-in, so that right and wrong ones are known."""
    from quatrain.generation.engine import Completion, Engine

    chats = tmp_path / "chats"
    texts = ["Answer with one SQLite statement. select count(*) from pets where age > 3"] * 9
    tokenizer = Tokenizer.train(texts, kind="bpe", vocab_size=330, chat_template="chatml")
    config = llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    model_folder.save(Model(config).initialize(0), chats)
    tokenizer.save(chats)
    with sqlite3.connect(tmp_path / "zoo.sqlite") as database:
        database.executescript("CREATE TABLE pets (name TEXT, age INT); INSERT INTO pets VALUES ('Rex', 3), ('Tom', 5)")
    database.close()
    rows = [("How many pets?", "SELECT count(*) FROM pets"), ("Who?", "SELECT name FROM pets"), ("x" * 999, "SELECT 1")]
    source = tmp_path / "questions.jsonl"
    lines = (json.dumps({"question": question, "sql": sql, "db_id": "zoo"}) + "\n" for question, sql in rows)
    source.write_text("".join(lines), encoding="utf-8")

    def say(engine: Engine, prompts: list[list[int]], params: object, adapters: object) -> list[Completion]:
        assert "pets: name, age" in str(engine.tokenizer.decode(prompts[0]))  # type: ignore[union-attr]
        answers = ["```sql\nSELECT 2\n```", "DELETE FROM pets"]
        return [Completion(answer, [1], "stop", []) for answer in answers[: len(prompts)]]

    monkeypatch.setattr(Engine, "generate", say)
    assert main(["evaluate", str(chats), str(source), "--databases", str(tmp_path / "zoo.sqlite"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (scores,) = found["scores"].values()
    assert scores == {"execution_accuracy": pytest.approx(1 / 3), "exact_match": 0, "count": 3}
    assert "1 prompts are longer than the model's context of 256 tokens" in found["notes"][0]
    assert main(["evaluate", str(chats), str(source), "--databases", str(tmp_path / "zoo.sqlite")]) == 0
    shown = capsys.readouterr().out
    assert "33.3%" in shown and "wrong, only reading with SELECT is allowed; expected: select name from pets" in shown
    assert main(["evaluate", str(chats), str(source)]) == 2
    assert "databases, and none are named" in capsys.readouterr().err
    assert main(["evaluate", str(chats), str(source), "--databases", str(tmp_path / "nowhere")]) == 2


def test_chat_shows_the_schema_where_it_is_asked_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quatrain.generation.engine import Engine

    with sqlite3.connect(tmp_path / "zoo.sqlite") as database:
        database.executescript("CREATE TABLE Pets (Name TEXT); INSERT INTO Pets VALUES ('Rex')")
    database.close()
    read: list[str] = []

    def render(engine: Engine, messages: list[dict[str, str]], **options: object) -> list[int]:
        read.append(messages[-1]["content"])
        return [1]

    monkeypatch.setattr(Engine, "render", render)
    answers(monkeypatch, *["```sql\nselect name from pets\n```"] * 2)
    for more in ([], ["--schema"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("Who?\n"))
        assert main(["chat", str(folder), "--db", str(tmp_path / "zoo.sqlite"), *more]) == 0
        assert "Rex" in capsys.readouterr().out
    assert read == ["who", "Answer with one SQLite statement.\npets: name\nQuestion: Who?"]
    assert main(["chat", str(folder), "--schema"]) == 2
