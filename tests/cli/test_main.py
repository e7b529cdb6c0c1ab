"""The command line as a whole: exit codes, messages, start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from tiny_models import llama, save_random

from quatrain.cli import main
from quatrain.core.errors import InputError

FULL = Path(__file__).parents[1] / "runs" / "recipes" / "full.toml"

VERBS = [
    "chat",
    "check",
    "data",
    "doctor",
    "evaluate",
    "generate",
    "merge",
    "plan",
    "sweep",
    "predict",
    "recipes",
    "run",
    "tokenize",
]


def quatrain(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "quatrain", *words], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    done = quatrain("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f" {verb} " in done.stdout
    assert "Talk to a model" in done.stdout and "The catalog of named data sets" in done.stdout
    code = (
        "import sys; from quatrain.cli import main; main(['--help']); "
        "heavy = {'torch', 'numpy', 'tokenizers', 'jinja2', 'safetensors', 'sqlite3', 'urllib.request'}; "
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stderr.strip() == "set()"


def test_importing_the_package_imports_no_torch() -> None:
    """And a task whose examples need no model loads none: its children start in a third of a second, not in two."""
    code = (
        "import sys, quatrain; print(sorted({'torch', 'numpy', 'pydantic', 'rich', 'cyclopts'} & set(sys.modules))); "
        "import quatrain.tasks.text2sql; print('torch' in sys.modules); "
        "from quatrain.cli import main; main(['recipes', '--nosuch']); "
        "print({'quatrain.cli.plan', 'quatrain.cli.run'} & set(sys.modules))"  # a verb imports no other
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "False", "set()"], done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "Usage: quatrain" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import quatrain

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == quatrain.__version__


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["rnu", "quickstart"], 'Did you mean "run"?'),
        (["run", "quickstart", "--restrat"], "Did you mean --restart?"),
        (["generate", "folder"], "--prompt"),
        (["generate", "folder", "x", "--top-k", "many"], "many"),
        (["run"], "run needs a recipe"),
        (["run", "quickstart", "--restart", "--reuse"], "at most one of them"),
        (["run", "quikstart"], "did you mean quickstart?"),
        (["run", "quickstart", "seed=x"], 'seed: "x" is text; must be a whole number'),
        (["check", "quickstart", "stage[1].train.lerning_rate=1"], "unknown; did you mean learning_rate?"),
        (["plan", "nothing"], "no such recipe"),
        (["chat", "nowhere", "--db", "nowhere.sqlite"], "nowhere.sqlite"),
        (["generate", "./nowhere", "Hello"], "nowhere"),
        (["tokenize", "nowhere", "Hello"], "nowhere"),
        (["data", "get", "gutenburg"], "Did you mean gutenberg:1661?"),
    ],
)
def test_a_mistake_of_the_user_gives_2_and_one_message(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert part in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **options: object) -> NoReturn:
        raise error

    import quatrain.runs.runner as module

    monkeypatch.setattr(module, "run", run)


def test_a_bug_says_so_and_how_to_see_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(KeyError("what"), monkeypatch)
    assert main(["run", str(FULL)]) == 1
    error = capsys.readouterr().err
    assert "KeyError: 'what'" in error and "This is a bug" in error and "--debug" in error
    assert main(["run", str(FULL), "--debug"]) == 1
    assert "Traceback" in (error := capsys.readouterr().err) and "This is a bug" in error


def test_debug_keeps_the_exit_code_and_needs_no_traceback_for_a_missing_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--debug", "run"], ["run", "--debug"], ["--debug", "generate"], ["generate", "--debug", "x"]):
        assert main(words) == 2
        assert "Traceback" not in capsys.readouterr().err
    fail_with(InputError("no"), monkeypatch)
    assert main(["run", str(FULL), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("error: no\n")
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["run", str(FULL), "--debug"]) == 130


def test_messages_with_brackets_come_out_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(InputError("stage[1].train [bold]x[/bold]", ["[red]", "[/]"]), monkeypatch)
    assert main(["run", str(FULL)]) == 2
    assert capsys.readouterr().err == "error: stage[1].train [bold]x[/bold]\n  - [red]\n  - [/]\n"


def test_ctrl_c_gives_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["run", str(FULL)]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="pipes close otherwise elsewhere")
def test_a_reader_that_goes_away_gives_no_traceback() -> None:
    command = f"{sys.executable!r} -m quatrain check --toml {str(FULL)!r} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == 'name = "full"\n'
    assert done.stderr == ""


def test_recipes_lists_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"quickstart", "sherlock", "shakespeare-char"} <= {row["name"] for row in rows}
    assert all(row["description"] and row["stages"] for row in rows)
    assert main(["run", "--list"]) == 0
    assert "quickstart" in capsys.readouterr().out


def test_check_prints_a_recipe_that_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.runs.recipe import load

    assert main(["check", str(FULL), "seed=7", "--toml"]) == 0
    path = tmp_path / "resolved.toml"
    path.write_text(capsys.readouterr().out)
    assert load(path) == load(FULL, ["seed=7"])
    assert main(["check", str(FULL), "--toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["seed"] == load(FULL).seed


def test_check_names_files_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(FULL), "data.database=nowhere.sqlite"]) == 2
    assert 'data.database: "nowhere.sqlite" does not exist' in capsys.readouterr().err
    assert main(["check", "sherlock", "data.source=tinyshakespear"]) == 2
    assert "did you mean tinyshakespeare?" in capsys.readouterr().err


def test_the_catalog_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["gutenberg:1661"]["licence"] and rows["tinyshakespeare"]["where"] in ("here", "download")


def test_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] and found["missing"] == []
    assert found["flops_per_second"]["float32"] > 1e8


def test_doctor_says_how_a_model_is_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_random(llama(), tmp_path)
    assert main(["doctor", str(tmp_path), "--budget", "0.001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    decoding = found["decoding"]
    assert found["examination"]["counts"]["not run"] == len(found["examination"]["checks"]) > 20
    assert decoding["tokens/s of one text"] > 0 and "not worth" in decoding["runs in"]


def test_a_run_tells_a_program_what_it_made(tmp_path: Path) -> None:
    """The tokenizer stage alone: the smallest real run."""
    (tmp_path / "book.txt").write_text("It was a dark night. " * 200)
    (tmp_path / "small.toml").write_text(
        '[data]\nsource = "book.txt"\n[tokenizer]\nvocab_size = 300\n[[stage]]\nkind = "tokenizer"\n'
    )
    events = []
    for _ in range(2):
        done = quatrain("run", "small.toml", "--json", cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
        assert done.returncode == 0, done.stderr
        events.append([json.loads(line) for line in done.stdout.splitlines()])
    assert events[0][0]["event"] == "stage" and events[0][0]["name"] == "01-tokenizer"
    first, second = events[0][-1], events[1][-1]
    assert first["event"] == second["event"] == "finished"
    assert not first["done_before"] and second["done_before"]
    assert first["folder"] == str(Path("runs/small")) and first["model"] is None
    assert (tmp_path / "runs/small/stages/01-tokenizer/tokenizer/tokenizer.json").is_file()
    assert "Traceback" not in done.stderr
