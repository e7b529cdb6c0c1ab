"""`quatrain new`: what is answered, typed or piped becomes a recipe that `quatrain check` accepts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.runs.recipe import load, raw_recipe
from quatrain.runs.starters import GOALS, SIZES, example_data, starter

OWN = {"database": "my.sqlite", "translate": "pairs.jsonl"}
"""A file of the user's own for the goals for which it is no text file."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = "The old road ran down to the sea, and nobody came that night.\n"
    for name in ("my.txt", *OWN.values()):
        Path(name).write_text(line * 300, encoding="utf-8")


def answered(monkeypatch: pytest.MonkeyPatch, text: str, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["new", *words])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("goal", GOALS)
def test_every_goal_of_every_size_is_a_valid_recipe(goal: str, size: str) -> None:
    own = OWN.get(goal, "my.txt")
    Path("own.toml").write_text(starter("own", goal, data=own, size=size), encoding="utf-8")
    recipe, shipped = load("own.toml"), load(GOALS[goal].recipe)
    assert recipe.name == "own" and getattr(recipe.data, GOALS[goal].key) == own
    assert recipe.data.dev is None and recipe.data.test is None
    assert [stage.kind for stage in recipe.stage] == [stage.kind for stage in shipped.stage]
    factor = SIZES[size].width
    assert recipe.model.hidden_size == shipped.model.hidden_size * factor
    for ours, theirs in zip(recipe.stage, shipped.stage, strict=True):
        steps = getattr(getattr(theirs, "train", None), "steps", None)
        if steps is not None:
            assert ours.train.steps == round(steps * SIZES[size].steps)  # type: ignore[attr-defined]


@pytest.mark.parametrize("goal", GOALS)
def test_example_data_keeps_the_data_of_the_shipped_recipe(goal: str) -> None:
    Path("same.toml").write_text(starter("same", goal), encoding="utf-8")
    assert load("same.toml").data == load(GOALS[goal].recipe).data
    assert raw_recipe(GOALS[goal].recipe)["data"][GOALS[goal].key] == example_data(goal)


def test_three_answers_make_a_recipe_that_check_accepts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answered(monkeypatch, "1\nmy.txt\nsmall\n") == 0
    shown = capsys.readouterr().out
    assert "1. What is the model for?" in shown and "2. Which data?" in shown and "3. How large" in shown
    assert "quatrain check my-text.toml" in shown and "quatrain run my-text.toml" in shown
    tiny = [
        "model.hidden_size=32",
        "model.num_hidden_layers=1",
        "tokenizer.vocab_size=280",
        "stage.pretrain.context=32",
    ]
    assert main(["check", "my-text.toml", "--no-measure", *tiny]) == 0
    assert "The recipe is valid" in capsys.readouterr().out


def test_empty_answers_take_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(monkeypatch, "\n\n\n", "poems.toml") == 0
    recipe = load("poems.toml")
    assert recipe.name == "poems" and recipe.data.source == "gutenberg:1661"
    assert recipe.model == load("sherlock").model


def test_wrong_answers_are_asked_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(monkeypatch, "11\ntxet\ntext\nmy.tx\nmy.txt\nhuge\n1\n") == 0
    shown = capsys.readouterr().out
    assert "must be a number from 1 to 10" in shown and "did you mean text?" in shown
    assert '"my.tx" does not exist (did you mean my.txt?)' in shown
    assert '"huge": must be a number from 1 to 3' in shown
    assert load("my-text.toml").model.hidden_size == 128


def test_options_answer_instead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["notes/a.toml", "--goal", "text", "--data", "my.txt", "--size", "large"]
    assert answered(monkeypatch, "", *words) == 0
    shown = capsys.readouterr().out
    assert "1. What" not in shown and "quatrain run notes/a.toml" in shown
    assert load("notes/a.toml").stage[1].train.steps == 2000  # type: ignore[attr-defined]
    assert answered(monkeypatch, "", "b.toml", "--goal", "text", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": "b.toml",
        "goal": "text",
        "size": "medium",
        "next": ["quatrain check b.toml", "quatrain run b.toml"],
    }


@pytest.mark.parametrize(
    ("typed", "words", "part"),
    [
        ("", [], "--goal"),
        ("text\n", [], "--data"),
        ("text\n\n", [], "--size"),
        ("", ["--goal", "txt"], "did you mean text?"),
        ("", ["--goal", "text", "--data", "no.txt", "--size", "small"], "does not exist"),
        ("", ["--goal", "text", "--data", "my.txt", "--size", "big"], "must be one of small, medium, large"),
        ("", ["my", "--goal", "text"], "must end in .toml"),
        ("", ["a b.toml", "--goal", "text", "--json"], "name"),
        ("", ["--json"], "it needs --goal"),
        ("", ["there.toml"], "--force"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, words: list[str], part: str
) -> None:
    Path("there.toml").write_text("mine", encoding="utf-8")
    assert answered(monkeypatch, typed, *words) == 2
    assert part in capsys.readouterr().err
    assert Path("there.toml").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in Path().glob("*.toml")) == ["there.toml"]


def test_force_replaces_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("there.toml").write_text("mine", encoding="utf-8")
    assert (
        answered(monkeypatch, "", "there.toml", "--goal", "text", "--data", "example", "--size", "small", "--force")
        == 0
    )
    assert load("there.toml").name == "there"


def test_an_unknown_goal_is_named() -> None:
    with pytest.raises(InputError, match="did you mean database"):
        starter("x", "databas")
