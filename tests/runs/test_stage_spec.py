"""A kind of stage is one file: a temporary module adds one, and a recipe with it is checked, run, resumed and reported.

The stages run in processes of their own, because the recipe collects the kinds of stages when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forks
import pytest

import quatrain
from quatrain.core.errors import InputError
from quatrain.runs.recipe import loads
from quatrain.runs.stages import specs
from quatrain.training.settings import TrainSettings

HEAD = (Path(__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")

MODULE = '''
"""The repeat stage: the model learns one line of text by heart."""

import os
from typing import Literal

from quatrain.core.errors import QuatrainError
from quatrain.core.settings import Problem
from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageSpec
from quatrain.training.settings import TrainSettings


class RepeatStage(StageSettings):
    """Learns `text`."""

    kind: Literal["repeat"] = "repeat"
    text: str
    train: TrainSettings


def conflicts(settings, recipe, index):
    if not settings.text:
        yield Problem(("stage", index, "text"), "is empty; there is nothing to repeat")


def prepare(settings, context):
    from quatrain.data.batches import TokenExample
    from quatrain.runs.job import TrainingJob
    from quatrain.runs.learning import example_stream
    from quatrain.runs.material import model_of, tokenizer_of
    from quatrain.training.objectives import Causal

    model, tokenizer = model_of(context), tokenizer_of(context)
    ids = tokenizer.encode(settings.text)
    examples = [TokenExample(ids, [True] * len(ids)) for _ in range(64)]
    stream, steps = example_stream(settings, context, examples)
    return TrainingJob(
        model, tokenizer, Causal(tokenizer.pad_id or 0), stream, settings.train, steps, length=len(ids),
        limit=model.config.max_position_embeddings, examples=examples,
    )


def run(settings, context):
    from quatrain.runs.assess import assess
    from quatrain.runs.learning import learn

    job = prepare(settings, context)
    _, result = learn(job, context)
    if os.environ.get("REPEAT_FAILS"):
        raise QuatrainError("the stage fails after its training")
    assess(settings, context, job.model, job.tokenizer, result)
    return result


SPEC = StageSpec(
    RepeatStage,
    run=run,
    needs=lambda settings, recipe: {"model"},
    produces=("model",),
    prepare=prepare,
    conflicts=conflicts,
    distributed=True,
)
'''

TRAIN = "train = {{ steps = {steps}, batch_tokens = 192, warmup_steps = 1, log_every = 1, checkpoint_every = 2 }}"


@pytest.fixture
def recipe(tmp_path: Path, materials: Path) -> Path:
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "repeat.py").write_text(MODULE, encoding="utf-8")
    stages = [
        f'[[stage]]\nkind = "pretrain"\n{TRAIN.format(steps=2)}',
        f'[[stage]]\nkind = "repeat"\ntext = "the cat sat on the mat"\n{TRAIN.format(steps=6)}',
        '[[stage]]\nkind = "quantize"',
    ]
    path = tmp_path / "repeat.toml"
    path.write_text(HEAD.format(text=materials / "text.txt") + "\n".join(stages) + "\n", encoding="utf-8")
    return path


def command_line(recipe: Path, *words: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    package, kinds = Path(quatrain.__file__).parent.parent, recipe.parent / "kinds"
    environment = os.environ | {"QUATRAIN_STAGES": str(kinds), "PYTHONPATH": str(package)}
    environment["REPEAT_FAILS"] = "1" if fails else ""
    return forks.run(["-m", "quatrain", *words], env=environment, modules=("torch",))  # kinds are found by an import


@pytest.mark.slow
def test_a_kind_of_stage_in_one_file_is_checked_run_resumed_and_reported(recipe: Path) -> None:
    checked = command_line(recipe, "check", str(recipe), "--no-measure", "--json")
    assert checked.returncode == 0, checked.stderr
    assert [stage["stage"] for stage in json.loads(checked.stdout)["stages"]] == ["02-pretrain", "03-repeat"]
    assert json.loads(checked.stdout)["stages"][1]["steps"] == 6

    failed = command_line(recipe, "run", str(recipe), "--runs-dir", str(recipe.parent / "runs"), fails=True)
    assert failed.returncode == 1 and "the stage fails after its training" in failed.stderr
    resumed = command_line(recipe, "run", str(recipe), "--runs-dir", str(recipe.parent / "runs"))
    assert resumed.returncode == 0, resumed.stderr
    assert "02-pretrain, finished before" in resumed.stdout and "03-repeat resumes at step" in resumed.stdout

    folder = recipe.parent / "runs" / "tiny"
    result = json.loads((folder / "stages/03-repeat/result.json").read_text())
    assert result["kind"] == "repeat" and result["steps"] == 6 and result["samples"]
    assert "repeat" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_process_that_measures_knows_a_kind_that_was_added_by_a_program(recipe: Path) -> None:
    program = (
        "import sys; from quatrain.runs import stages; stages.__path__.append(sys.argv.pop(1)); "
        "from quatrain.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [str(recipe.parent / "kinds"), "check", str(recipe), "stage.pretrain.train.steps=1", "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(quatrain.__file__).parent.parent)}
    checked = forks.run(["-c", program, *words], env=environment, modules=("torch",))
    assert checked.returncode == 0, checked.stderr
    measured = json.loads(checked.stdout)["stages"][1]
    assert measured["stage"] == "03-repeat" and measured["seconds"] > 0 and not measured["problems"]


def test_the_recipe_checks_a_kind_of_stage_of_another_module(recipe: Path) -> None:
    empty = command_line(recipe, "check", str(recipe), "stage.repeat.text=", "--toml")
    assert empty.returncode == 2 and "stage[2].text: is empty; there is nothing to repeat" in empty.stderr
    first = command_line(recipe, "check", str(recipe), "stage.pretrain=none", "--toml")
    assert first.returncode == 2 and "repeat needs a model; put a pretrain stage before it" in first.stderr


def test_a_recipe_without_the_module_does_not_know_the_kind(recipe: Path) -> None:
    with pytest.raises(InputError, match="repeat"):
        loads(recipe.read_text(encoding="utf-8"))


def test_every_spec_is_consistent() -> None:
    assert {"tokenizer", "pretrain", "finetune", "dpo", "quantize", "evaluate"} <= set(specs())
    for kind, spec in specs().items():
        assert spec.kind == kind
        field = spec.settings.model_fields.get("train")
        trains = field is not None and field.annotation is TrainSettings
        assert trains or not spec.distributed, "only stages that train are distributed"
        assert not spec.distributed or spec.prepare is not None, "the other processes prepare the stage too"


def test_recipes_are_checked_without_torch() -> None:
    program = "import sys, quatrain.runs.recipe as r; r.load('quickstart'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
