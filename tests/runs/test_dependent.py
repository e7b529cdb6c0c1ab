"""An override wins over what the recipe itself says of dependent keys; a training that learns nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quatrain.core.errors import InputError
from quatrain.runs.recipe import load, recipe_names
from quatrain.training.settings import TrainSettings

RECIPE = """
[data]
source = "a.txt"
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
[stage.train]
batch_tokens = 4096
"""


def train(folder: Path, text: str, *overrides: str) -> tuple[TrainSettings, list[str]]:
    """The settings of a training, and what was said of them."""
    (folder / "mine.toml").write_text(RECIPE + text)
    said: list[str] = []
    recipe = load(folder / "mine.toml", overrides, say=said.append)
    return recipe.stage[1].train, said  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "overrides", "fields", "lines"),
    [
        ("steps = 500", ["stage.pretrain.train.steps=5"], {"steps": 5, "warmup_steps": 0}, 1),
        ("steps = 500\nwarmup_steps = 100", ["stage.pretrain.train.steps=50"], {"steps": 50, "warmup_steps": 5}, 1),
        ("steps = 500\nwarmup_steps = 100", ["stage.pretrain.train.steps=200"], {"steps": 200, "warmup_steps": 100}, 0),
        ("epochs = 2.0", ["stage.pretrain.train.steps=100"], {"steps": 100, "epochs": None}, 1),
        (
            "epochs = 2.0\nwarmup_steps = 200",
            ["stage.1.train.steps=100"],
            {"steps": 100, "epochs": None, "warmup_steps": 10},
            2,
        ),
        ("steps = 500", ["stage.pretrain.train.epochs=2"], {"steps": None, "epochs": 2.0}, 1),
        ("steps = 500", ["stage.1.train.steps=1"], {"steps": 1, "warmup_steps": 0, "schedule": "constant"}, 2),
        ("steps = 9", [], {"steps": 9, "warmup_steps": 0}, 1),
        ("steps = 100", [], {"steps": 100, "warmup_steps": 20}, 0),
        (
            'steps = 500\nevaluate_every = 50\nkeep = "best"\npatience = 3',
            ["stage.1.train.evaluate_every=0"],
            {"keep": "last", "patience": 0},
            2,
        ),
        ('steps = 500\nevaluate_every = 50\nkeep = "best"', ["data.validation=0"], {"keep": "last"}, 1),
        ('steps = 500\nevaluate_every = 50\nkeep = "best"', ["data.validation=0.5"], {"keep": "best"}, 0),
        (
            'steps = 500\nevaluate_every = 50\nkeep = "best"',
            ["data.validation=0", "data.dev=b.txt"],
            {"keep": "best"},
            0,
        ),
    ],
)
def test_the_override_wins(tmp_path: Path, text: str, overrides: list[str], fields: dict[str, Any], lines: int) -> None:
    found, said = train(tmp_path, text, *overrides)
    assert {name: getattr(found, name) for name in fields} == fields
    assert len(said) == lines, said


@pytest.mark.parametrize(
    ("text", "overrides", "part"),
    [
        (
            "steps = 500",
            ["stage.1.train.steps=5", "stage.1.train.warmup_steps=9"],
            "warmup_steps: 9; must be at most steps = 5",
        ),
        ("steps = 500", ["stage.1.train.warmup_steps=900"], "warmup_steps: 900; must be at most steps = 500"),
        ("steps = 5\nwarmup_steps = 9", [], "warmup_steps: 9; must be at most steps = 5"),
        ("steps = 5", ["stage.1.train.steps=5", "stage.1.train.epochs=5"], "exactly one of steps and epochs"),
        ("steps = 5", ['stage.1.train.keep="best"'], "evaluate_every: 0; must be at least 1"),
        ("steps = 1\nwarmup_steps = 0", [], 'schedule: "cosine"; its only step has the rate 0'),
        ("steps = 500", ["stage.1.train.steps=1", "stage.1.train.schedule=linear"], "its only step has the rate 0"),
    ],
)
def test_what_two_overrides_or_the_recipe_itself_contradict(
    tmp_path: Path, text: str, overrides: list[str], part: str
) -> None:
    with pytest.raises(InputError) as caught:
        train(tmp_path, text, *overrides)
    assert part in str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_few_steps_of_any_shipped_recipe(name: str) -> None:
    kinds = [(index, stage.kind) for index, stage in enumerate(load(name).stage) if hasattr(stage, "train")]
    for steps in (1, 2, 5):
        recipe = load(name, [f"stage.{index}.train.steps={steps}" for index, _ in kinds])
        for index, _ in kinds:
            settings = recipe.stage[index].train  # type: ignore[union-attr]
            assert settings.steps == steps and settings.epochs is None and any(settings.rates(steps))
