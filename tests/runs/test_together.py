"""One recipe by one process and by two: the same model, one set of files, no line twice; torchrun ends what fails."""

from pathlib import Path

import pytest
from processes import torchrun, two_forks
from safetensors.torch import load_file

import quatrain
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.runs.distributed import divided
from quatrain.runs.recipe import loads

HEAD = (Path(__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
LEARN = """
[[stage]]
kind = "pretrain"
train = { steps = 6, batch_tokens = 384, accumulation = 2, learning_rate = 3e-3, warmup_steps = 2, log_every = 1,
          precision = "float32", optimizer = "muon", evaluate_every = 3, device = "cpu", parallel = "PARALLEL" }

[[stage]]
kind = "finetune"
data = { source = "CHATS" }
adapter = { method = "lora", rank = 2, alpha = 4 }
train = { steps = 4, batch_tokens = 192, accumulation = 2, learning_rate = 3e-3, warmup_steps = 1, log_every = 1,
          precision = "float32", device = "cpu" }
""".replace(",\n         ", ",")


FAILING = """
import os, sys
from quatrain.cli import main
from quatrain.training.trainer import Trainer
take = Trainer.step
def failing(trainer):
    if trainer.steps_done == 3 and os.environ["RANK"] == "1":
        raise ValueError("something that only one process meets")
    take(trainer)
Trainer.step = failing
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def recipe(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    text = HEAD.format(text=materials / "text.txt") + LEARN.replace("CHATS", str(materials / "chats.jsonl"))
    path.write_text(text.replace("PARALLEL", "zero3"), encoding="utf-8")
    return path


@pytest.mark.slow
def test_two_processes_make_the_model_of_one(recipe: Path, tmp_path: Path) -> None:
    one = quatrain.run(loads(recipe.read_text()), runs_dir=tmp_path / "one", reporter=SilentReporter())
    done = two_forks(recipe, folder=tmp_path / "two")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Finished in") == 1 and done.stdout.count("stage 2/3") == 1
    two = tmp_path / "two/tiny"
    for stage in ("02-pretrain", "03-finetune"):
        ours, theirs = (load_file(run / f"stages/{stage}/model/model.safetensors") for run in (one.folder, two))
        assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)
    first, second = (list(read_metrics(run / "metrics.jsonl")) for run in (one.folder, two))
    assert [(entry["stage"], entry["step"]) for entry in first] == [(e["stage"], e["step"]) for e in second]
    assert [entry.get("loss") for entry in second] == pytest.approx([entry.get("loss") for entry in first], abs=1e-5)
    again = two_forks(recipe, folder=tmp_path / "two")
    assert again.returncode == 0 and "Finished in" not in again.stdout


def test_what_is_wrong_with_a_recipe_ends_all_processes(recipe: Path, tmp_path: Path) -> None:
    done = two_forks(recipe, "data.source=absent.txt", folder=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("absent.txt") == 1


@pytest.mark.slow
def test_a_process_that_fails_takes_the_others_with_it_and_the_run_goes_on_later(recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING, encoding="utf-8")
    done = torchrun(script, recipe, "stage.pretrain.train.checkpoint_every=1", folder=tmp_path)
    assert done.returncode != 0
    assert "something that only one process meets" in done.stderr
    assert "internal error: RuntimeError" not in done.stderr
    assert (tmp_path / "tiny/stages/02-pretrain/checkpoints/step-00000003/training_state/shards").is_dir()
    one = quatrain.run(loads(recipe.read_text()), runs_dir=tmp_path, reporter=SilentReporter())
    whole = quatrain.run(loads(recipe.read_text()), runs_dir=tmp_path / "whole", reporter=SilentReporter())
    ours, theirs = (load_file(run.folder / "stages/02-pretrain/model/model.safetensors") for run in (one, whole))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)


def test_every_process_gets_a_micro_batch(recipe: Path) -> None:
    stage = loads(recipe.read_text()).stage[1]
    assert divided(stage, 2) is stage
    assert divided(stage, 3).train.accumulation == 3 and divided(stage, 3).train.batch_tokens == 384
    assert divided(stage, 4).train.accumulation == 4
