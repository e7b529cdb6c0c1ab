"""What the README tells people to type, typed: its commands and its Python, on tiny models.

Every `quatrain` command runs in the order of the page, as a process of its own, in one folder. Recipes get
settings that make them small; nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import tomllib
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [line.strip() for kind, body in BLOCKS if kind == "sh" for line in body.splitlines() if line.strip()]
MAKE_RUN = ["quatrain", "run", "quickstart"]  # what `make run` does after installing
COMMANDS = [MAKE_RUN, *(shlex.split(line, comments=True) for line in SHELL if line.startswith("quatrain "))]
PYTHON = [body for kind, body in BLOCKS if kind == "python"]

MODEL = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64"]
TINY = [*(f"model.{item}" for item in MODEL), "stage.pretrain.train.steps=4", "stage.pretrain.train.warmup_steps=1"]
TINY += ["stage.pretrain.train.batch_tokens=1024", "evaluate.max_new_tokens=24"]
TINY_QUESTIONS = [
    *("data.examples=120", "evaluate.examples=4", "stage.finetune.train.batch_tokens=1024"),
    *("stage.finetune.train.steps=4", "stage.finetune.train.warmup_steps=1"),
]


def tiny(command: list[str]) -> list[str]:
    """The command, with settings after it that make a run small; the README's own settings win."""
    if command[1] not in ("run", "check"):
        return command
    added = TINY + (TINY_QUESTIONS if command[2] == "quickstart" else [])
    if command[2] != "quickstart" and not any(word.startswith("data.source=") for word in command):
        added = [*added, "data.source=my.txt"]  # the books themselves are proven elsewhere
    return [
        *command,
        *(item for item in added if not any(word.startswith(item.split("=")[0] + "=") for word in command)),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes to be there: a text and a database of the reader's own."""
    folder = tmp_path_factory.mktemp("a reader's folder")
    words = "It was a dark night and the rain fell on the old road to the sea while nobody came or went".split()
    lines = (" ".join(words[(i * j) % len(words)] for j in range(1, 12)) + ".\n" for i in range(1, 900))
    (folder / "my.txt").write_text("ROMEO:\n" + "".join(lines), encoding="utf-8")
    with sqlite3.connect(folder / "my.sqlite") as database:
        database.executescript(
            "create table authors (id integer primary key, name text, country text, born integer);"
            "create table books (id integer primary key, title text, author_id integer references authors(id),"
            " pages integer, price real, published text);"
        )
        rows = [(i, f"Author {chr(65 + i % 26)}{i}", ("France", "Peru", "Japan")[i % 3], 1900 + i) for i in range(40)]
        database.executemany("insert into authors values (?, ?, ?, ?)", rows)
        books = [
            (i, f"Book {i}", i % 40, 80 + 7 * i, 5 + i / 4, f"{1990 + i % 30}-0{1 + i % 9}-1{i % 9}")
            for i in range(200)
        ]
        database.executemany("insert into books values (?, ?, ?, ?, ?, ?)", books)
    database.close()
    return folder


def typed(command: list[str], folder: Path, questions: str = "") -> str:
    """What a command prints; it must end well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "QUATRAIN_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    result = forks.run(["-m", *command], cwd=folder, env=environment, input=questions)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def outputs(place: Path) -> dict[str, str]:
    """The output of every `quatrain` command of the README, by command."""
    outputs: dict[str, str] = {}
    for command in COMMANDS:
        line = shlex.join(command)
        if line not in outputs:
            questions = "How many customers are there?\n" if command[1] == "chat" else ""
            outputs[line] = typed(tiny(command), place, questions)
    return outputs


@pytest.mark.slow
def test_the_commands_run(outputs, place):
    assert len(outputs) >= 8
    for command in COMMANDS:
        if command[1] == "run":
            output = outputs[shlex.join(command)]
            assert "Made" in output and "What to try next" in output
    for name in ("quickstart", "mine", "my-text"):
        for made in (
            "model/model.safetensors",
            "model/tokenizer.json",
            "model/config.json",
            "report.html",
            "recipe.toml",
        ):
            assert (place / "runs" / name / made).is_file(), f"{name}: {made}"
    assert (place / "runs" / "quickstart" / "shop.sqlite").is_file()


@pytest.mark.slow
def test_what_they_say(outputs):
    for line, output in outputs.items():
        if line.startswith("quatrain chat"):
            assert output.strip(), line
        if line.startswith("quatrain recipes"):
            assert all(name in output for name in ("quickstart", "sherlock", "shakespeare-char"))
        if line.startswith("quatrain check"):
            assert "learned tokens" in output and "peak memory" in output


@pytest.mark.slow
def test_the_report_of_a_run_shows_its_stages(outputs, place):
    html = (place / "runs" / "quickstart" / "report.html").read_text(encoding="utf-8")
    for wanted in (
        "new combinations",
        "new values",
        "new phrasings",
        "Training curves",
        "Size and speed",
        "Cost",
    ):
        assert wanted in html, wanted
    assert "not finished" not in html and "Unreadable" not in html


@pytest.mark.slow
def test_the_python_runs(outputs, place):
    """In the folder where `quatrain run quickstart` has run: the same call from Python finds it, and does nothing."""
    assert len(PYTHON) == 1
    code = PYTHON[0].replace('quatrain.run("quickstart")', f'quatrain.run("quickstart", {TINY + TINY_QUESTIONS!r})')
    assert code != PYTHON[0]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "QUATRAIN_OFFLINE": "1"}
    result = forks.run(["-c", code], cwd=place, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "execution_accuracy" in result.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("line", sorted({line for line in SHELL if line.startswith("make ")}))
def test_make_knows_its_targets(line):
    words = shlex.split(line, comments=True)
    result = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "tools/make.py" in result.stdout, result.stderr


def test_every_line_of_shell_is_accounted_for():
    """A command of a new kind in the README needs a test here."""
    known = (
        "quatrain ",
        "make ",
        "source .venv/bin/activate",
        "python3 -m venv .venv",
        "pip install .",
        ".venv/bin/python -m pip",
    )
    assert [line for line in SHELL if not line.startswith(known)] == []


def test_the_recipe_of_ten_lines_is_valid():
    from quatrain.runs.recipe import loads

    (recipe,) = [body for kind, body in BLOCKS if kind == "toml"]
    assert len(recipe.splitlines()) == 10 and [stage.kind for stage in loads(recipe).stage] == ["tokenizer", "pretrain"]


def test_the_pinned_torch_is_the_one_that_the_readme_names():
    pins = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    assert set(re.findall(r"torch==[\d.]+", README)) == {pin for pin in pins if pin.startswith("torch==")}
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert oldest == ">=3.11" and "Python 3.11 or later" in README


def test_the_recorded_demo_loads_nothing_and_its_commands_exist():
    from quatrain.cli.app import build_app

    svg = (ROOT / "docs" / "images" / "demo.svg").read_text(encoding="utf-8")
    assert not re.search(r"url\([\"']?http|@import|<script|<image", svg)
    verbs = re.findall(r">quatrain&#160;([a-z]+)", svg)
    assert len(verbs) >= 2 and set(verbs) <= set(build_app())
    assert "docs/images/demo.svg" in README


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_recipes_in_the_table_are_those_that_ship():
    cells = re.findall(r"^\| (`[\w-]+`(?:, `[\w-]+`)*) \|", README, re.MULTILINE)
    table = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert table == {path.stem for path in (ROOT / "quatrain" / "runs" / "recipes").glob("*.toml")}
