"""The ladder: every rung is measured on the same text, a killed run keeps its rungs, the report draws them."""

import json
import math

import pytest

from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import load, loads
from quatrain.runs.runner import run
from quatrain.runs.stages import _ladder

NETWORKS = range(4, 11)
SMALL = [f"stage.ladder.rungs.{number}.train.{key}" for number in NETWORKS for key in ("warmup_steps=1", "steps=2")]


@pytest.fixture
def recipe(tmp_path):
    """The recipe that ships, for two steps of each network."""
    source = tmp_path / "text.txt"
    source.write_text("the cat sat on the mat, and the dog sat on the log. " * 150, encoding="utf-8")
    return load("ladder", [f"data.source={source.as_posix()}", *SMALL])


def test_rungs_are_measured_alike_and_drawn(recipe, tmp_path, monkeypatch):
    folder = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder
    result = json.loads((folder / "stages/02-ladder/result.json").read_text())
    rows = {row["name"]: row for row in result["ladder"]}
    assert list(rows) == [rung.name for rung in recipe.stage[1].rungs] and len(rows) == 11
    assert rows["uniform"]["bits_per_byte"] == pytest.approx(rows["uniform"]["loss"] / math.log(2), rel=1e-9)
    assert rows["7-gram"]["bits_per_byte"] < 0.5 < rows["unigram"]["bits_per_byte"] < rows["uniform"]["bits_per_byte"]
    assert rows["LSTM"]["parameters"] > 0 and rows["LSTM"]["seconds"] > 0 == rows["uniform"]["seconds"]
    report = (folder / "report.html").read_text()
    assert "Bits per byte against seconds" in report and report.count('class="dot single"') >= 10
    # The best rung is the run's model.
    assert json.loads((folder / "model/config.json").read_text())["model_type"] == "ngram"

    # Measured rungs are not trained again after a kill.
    (folder / "stages/02-ladder/result.json").unlink()
    monkeypatch.setitem(_ladder.RUNGS, "network", lambda *_: pytest.fail("trained again"))
    run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter())


def test_rungs_that_cannot_be_are_named_together():
    with pytest.raises(InputError) as caught:
        loads("""
name = "wrong"
[data]
source = "x.txt"
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "ladder"
rungs = [
    { name = "a", kind = "network" },
    { name = "a", kind = "uniform", train = { steps = 30 } },
    { name = "b", model = { family = "t5" }, train = { steps = 30 } },
    { name = "c", rows = "carried", model = { family = "gpt2" }, train = { steps = 30 } },
]
""")
    text = "\n".join(caught.value.problems)
    for part in ("a network has to be trained", "only a network is trained", "t5; must be a new model", "no state"):
        assert part in text, part


def test_the_shipped_ladder_climbs_from_a_guess_to_a_transformer():
    stage = load("ladder").stage[1]
    kinds = [rung.kind for rung in stage.rungs]
    assert kinds[:2] == ["uniform", "unigram"] and "ngram" in kinds
    families = [(rung.model.family, rung.model.classic.cell) for rung in stage.rungs if rung.kind == "network"]
    assert families[0][0] == "window-lm" and families[-1][0] == "llama"
    assert ("recurrent", "rnn") in families and ("recurrent", "lstm") in families
