"""The stages grpo, rejection-sampling and distill on the arithmetic task: metrics, knobs, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.runs.folder import Run
from quatrain.runs.recipe import load, loads

SMALL = [
    *("model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=32"),
    *(
        f"stage.{kind}.train.{key}"
        for kind in ("pretrain", "finetune", "grpo")
        for key in ("steps=4", "warmup_steps=0")
    ),
    *("evaluate.examples=8", "stage.grpo.held_out=4", "stage.grpo.prompts=4", "data.examples=200"),
]
STAGE = """
name = "tiny"
data = { task = "arithmetic", examples = 200 }
model = { folder = 'MODEL' }
evaluate = { examples = 8, max_new_tokens = 4 }
[[stage]]
KIND
prompts = 4
samples = 3
minibatches = MINIBATCHES
max_new_tokens = 4
rewards = [ { kind = "regex", pattern = "[0-4]", most = 20 } ]
held_out = 4
train = { steps = 4, learning_rate = 1e-2, warmup_steps = 0, schedule = "constant", precision = "float32", device = "cpu", accumulation = 2, evaluate_every = 2, log_every = 1 }
"""  # noqa: E501


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the shipped recipe makes, in a few steps of each of its stages."""
    folder = tmp_path_factory.mktemp("base")
    done = quatrain.run(load("arithmetic-grpo", SMALL), runs_dir=folder, reporter=SilentReporter())
    phases = [entry for entry in read_metrics(done.folder / "metrics.jsonl") if "reward/task" in entry]
    assert len(phases) == 4
    return done.folder / "model"


def recipe(model: Path, kind: str, minibatches: int = 2) -> str:
    return STAGE.replace("MODEL", str(model)).replace("KIND", kind).replace("MINIBATCHES", str(minibatches))


def run(text: str, folder: Path) -> tuple[Run, list[dict], dict]:
    done = quatrain.run(loads(text), runs_dir=folder, reporter=SilentReporter())
    phases = [entry for entry in read_metrics(done.folder / "metrics.jsonl") if "reward" in entry]
    (result,) = done.folder.glob("stages/*/result.json")
    return done, phases, json.loads(result.read_text())


def test_grpo_runs_to_its_end(model: Path, tmp_path: Path) -> None:
    done, phases, result = run(
        recipe(model, 'kind = "grpo"\nvariant = "dapo"\nclip_high = 0.3\nkl_coef = 0.1'), tmp_path
    )
    assert phases[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert phases[0]["kl"] == phases[0]["clip_fraction"] == 0
    named = {"reward/regex", "entropy", "completion_length", "groups_without_spread", "attempts", "sampler_gap"}
    assert named <= set(phases[0])
    knobs = result["policy_loss"]
    assert (knobs["variant"], knobs["clip_high"], knobs["clip_low"], knobs["aggregation"]) == (
        "dapo", 0.3, 0.2, "token_mean")  # fmt: skip
    assert "accuracy" in result["scores"]["sums"]
    entries = list(read_metrics(done.folder / "metrics.jsonl"))
    assert [entry["step"] for entry in entries if "true/accuracy" in entry] == [2, 4]


def test_other_variants_are_other_runs(model: Path, tmp_path: Path) -> None:
    """A variant's name is never ignored: the same rollouts give other weights."""
    weights = {}
    for name in ("grpo", "dr_grpo", "gspo", "rloo"):
        done, _, _ = run(recipe(model, f'kind = "grpo"\nvariant = "{name}"\nevaluate = false'), tmp_path / name)
        weights[name] = load_file(done.folder / "model/model.safetensors")["model.embed_tokens.weight"]
    names = list(weights)
    for place, one in enumerate(names):
        assert not any(torch.equal(weights[one], weights[other]) for other in names[place + 1 :])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ('variant = "gpro"', "must be one of grpo, bnpo, dapo"),
        ('variant = "reinforce"', "has no ratio to an older policy"),
        ('baseline = "first"', "stage[0].baseline"),
        ("clip_low = 2.0", "stage[0].clip_low"),
    ],
)
def test_a_bad_recipe_is_refused(model: Path, more: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        loads(recipe(model, f'kind = "grpo"\n{more}'))
    assert any(named in problem for problem in error.value.problems)
    with pytest.raises(InputError) as error:
        loads(recipe(model, 'kind = "grpo"').replace("samples = 3", "samples = 1"))
    assert any("compares the completions" in problem for problem in error.value.problems)


def test_rejection_sampling_learns_what_is_accepted(model: Path, tmp_path: Path) -> None:
    text = recipe(model, 'kind = "rejection-sampling"\nthreshold = 0.0\nstop = ["="]\nevaluate = false')
    _, phases, _ = run(text.replace("max_new_tokens = 4\nrew", "max_new_tokens = 12\nrew"), tmp_path)
    assert 0 < phases[0]["accepted"] <= phases[0]["ended_fraction"] < 1
    assert phases[0]["learned"] <= 4
    assert phases[0]["reward_best"] > phases[0]["reward"]


def test_distillation_from_a_folder(model: Path, tmp_path: Path) -> None:
    _, phases, _ = run(recipe(model, f"kind = \"distill\"\nteacher = '{model}'\nevaluate = false", 1), tmp_path)
    assert phases[0]["loss"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="is not a model folder"):
        run(recipe(model, f"kind = \"distill\"\nteacher = '{tmp_path}'"), tmp_path / "none")
