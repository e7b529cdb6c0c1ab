"""Windows of sensor readings: generated traces, CSV files, and what a short context cannot tell."""

import json
import re

import numpy as np
import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.data.series import ACTIVITIES, LOCAL, ORDERED, generate, read_csv
from quatrain.models.classic.sensor import SensorConfig, SensorNetwork
from quatrain.models.io import model_folder
from quatrain.runs.recipe import load, loads
from quatrain.runs.runner import run

RECIPE = """
name = "small"
[data]
validation = 0.25
{source}
[[stage]]
kind = "series"
network = "{network}"
window = {window}
examples = 24
hidden_size = 8
train = {{ steps = 4, batch_tokens = 1024, precision = "float32", warmup_steps = 1 }}
"""


def test_traces_follow_from_their_seed_and_differ_in_order_alone():
    one, other = generate(12, seed=3), generate(24, seed=3)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(one, other, strict=False))
    assert [window.label for window in one] == list(ACTIVITIES) * 2
    sums = {label: np.stack([w.values for w in generate(300, seed=0) if w.label == label]) for label in ORDERED}
    means, deviations = ([side[label].reshape(-1, 3).mean(0) if kind == "mean" else side[label].reshape(-1, 3).std(0)
                          for label in ORDERED] for kind, side in (("mean", sums), ("std", sums)))  # fmt: skip
    assert np.allclose(*means, atol=0.5) and np.allclose(*deviations, atol=0.2)
    assert set(LOCAL) | set(ORDERED) == set(ACTIVITIES)


@pytest.mark.parametrize("network", ["cnn", "lstm"])
def test_the_stage_leaves_a_model_and_its_scores_by_label(network, tmp_path):
    recipe = loads(RECIPE.format(source="", network=network, window=64))
    folder = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder
    result = json.loads((folder / "stages/01-series/result.json").read_text())
    assert set(result["scores"]["windows held out"]) == {"accuracy", "count"}
    assert result["baselines"]["windows held out"]["accuracy"] > 1 / 6
    assert {row["label"] for row in result["by_label"]} == set(ACTIVITIES)
    model = model_folder.load(folder / "model")
    windows = generate(6, seed=9, length=64)
    labels = model.classify(torch.from_numpy(np.stack([window.values for window in windows])))
    assert len(labels) == 6 and set(labels) <= set(ACTIVITIES)
    assert "right by label" in (folder / "report.html").read_text()


def test_the_shipped_recipe_compares_both_networks(tmp_path):
    small = [f"stage[{number}].{key}" for number in (0, 1)
             for key in ("examples=24", "train.epochs=none", "train.steps=2", "train.warmup_steps=1")]  # fmt: skip
    done = run(load("activity", small), runs_dir=tmp_path, reporter=SilentReporter())
    assert [stage["figures"][0]["title"] for stage in done.results] == [
        "1-D CNN: right by label",
        "LSTM: right by label",
    ]


def test_a_csv_file_gives_windows_of_one_label(tmp_path):
    file = tmp_path / "my.csv"
    stretches = (("a", "up", 9), ("a", "down", 8), ("b", "up", 3))
    rows = [f"{name},{label},{number},{-number}" for name, label, count in stretches for number in range(count)]
    file.write_text("series,label,x,y\n" + "\n".join(rows) + "\n", encoding="utf-8")
    windows = read_csv(file, length=4, stride=2)
    assert [window.label for window in windows] == ["up"] * 3 + ["down"] * 3
    assert windows[1].values.tolist() == [[2, -2], [3, -3], [4, -4], [5, -5]]
    recipe = loads(RECIPE.format(source=f'source = "{file.as_posix()}"', network="cnn", window=4))
    assert run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder.is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("x,y\n1,2\n", "needs label"),
        ("label,x\na,1\nb,one\n", "line 3: x: 'one'|line 3: x: \"one\""),
        ("label,x\na,1\nb,nan\n", "line 3: NaN"),
        ("label,x\na,1\n", "no stretch of one label has 4 rows"),
        ("label,x\na,1,7\n", "needs label|must be a number|columns"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    file = tmp_path / "wrong.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_csv(file, length=4)
    assert re.search(message, " ".join([caught.value.message, *caught.value.problems]))


def test_windows_of_another_shape_are_refused():
    model = SensorNetwork(SensorConfig(labels=["a", "b"])).initialize(0)
    with pytest.raises(InputError, match="this model reads"):
        model(torch.zeros(2, 64, 5))
