"""The ppo stage in a recipe: prompts of every kind, metrics, the preflight, resume, and two processes as one."""

import json
import sys
from pathlib import Path

import forks
import pytest
import torch
from processes import two_forks
from safetensors.torch import load_file
from tiny_models import make_folder

import quatrain
from quatrain.alignment.reward_model import RewardTask
from quatrain.alignment.rewards.base import RewardError
from quatrain.core.errors import InputError, InterruptedRun
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.data.corpus import DataParts
from quatrain.data.settings import DataSettings
from quatrain.runs.folder import Run
from quatrain.runs.preflight import preflight
from quatrain.runs.recipe import loads

RECIPE = """
name = "tiny"
[data]
source = 'SOURCE'
validation = 0.2
[model]
folder = 'MODEL'
[[stage]]
kind = "ppo"
prompts = 4
samples = 2
minibatches = 2
passes = 2
max_new_tokens = 6
rewards = [ { kind = "regex", pattern = "[a-m]", most = 9 } ]
true_rewards = [ { kind = "regex", pattern = "[n-z]", name = "late" } ]
held_out = 4
evaluate = false
MORE
train = { steps = 6, learning_rate = 3e-3, warmup_steps = 0, schedule = "constant", precision = "float32", device = "cpu", accumulation = 2, evaluate_every = 3, log_every = 1 }
"""  # noqa: E501


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "model", context=64)


@pytest.fixture(scope="module")
def text(materials: Path, model: Path) -> str:
    return RECIPE.replace("SOURCE", str(materials / "chats.jsonl")).replace("MODEL", str(model))


def run(text: str, folder: Path, more: str = "") -> Run:
    return quatrain.run(loads(text.replace("MORE", more)), runs_dir=folder, reporter=SilentReporter())


def test_a_recipe_runs_to_its_end(text: str, tmp_path: Path) -> None:
    done = run(text, tmp_path)
    entries = list(read_metrics(done.folder / "metrics.jsonl"))
    phases = [entry for entry in entries if "reward" in entry]
    assert [entry["step"] for entry in phases] == [1, 5] and phases[0]["ratio"] == 1 and phases[0]["kl"] == 0
    assert {"reward/regex", "entropy", "completion_length", "ended_fraction", "repetition"} <= set(phases[0])
    measured = [entry for entry in entries if "true/late" in entry]
    assert [entry["step"] for entry in measured] == [3, 6] and "validation_reward" in measured[0]
    stage = done.folder / "stages" / "01-ppo"
    records = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 4] and records[0]["samples"][0]["prompt"].startswith("say ")
    result = json.loads((stage / "result.json").read_text())
    assert result["rollouts"]["phases"] == 2 and any("of the training time" in note for note in result["notes"])
    # The value head is no part of the model.
    assert not any("value" in name for name in load_file(stage / "model/model.safetensors"))


@pytest.mark.parametrize("method", ['"lora", rank = 2, alpha = 4', '"last-layers"'])
def test_the_reference_is_the_model_before_an_adapter(text: str, tmp_path: Path, method: str) -> None:
    done = run(text, tmp_path, f"adapter = {{ method = {method} }}")
    phases = [entry for entry in read_metrics(done.folder / "metrics.jsonl") if "reward" in entry]
    assert phases[0]["kl"] == 0 and phases[1]["kl"] != 0
    assert (done.folder / "stages/01-ppo/adapter/adapter_config.json").is_file()


def test_texts_begin_after_every_control(materials: Path, text: str, tmp_path: Path) -> None:
    more = (
        'prompt_format = "text"\nprompt_tokens = [3, 5]\ncontrols = { "[+] " = "yes", "[-] " = "no" }\nvalue = "model"'
    )
    done = run(text.replace("chats.jsonl", "text.txt"), tmp_path, more)
    lines = (done.folder / "stages/01-ppo/rollouts.jsonl").read_text().splitlines()
    prompts = [sample["prompt"] for line in lines for sample in json.loads(line)["samples"]]
    assert all(prompt.startswith(("[+] ", "[-] ")) and 7 <= len(prompt) <= 9 for prompt in prompts)


def test_a_reward_model_of_the_recipe_judges(materials: Path, text: str, tmp_path: Path) -> None:
    before, _, after = text.partition("[[stage]]")
    reward = f"""[[stage]]
kind = "reward"
data = {{ source = '{materials / "pairs.jsonl"}' }}
evaluate = false
train = {{ steps = 2, batch_tokens = 512, warmup_steps = 0, precision = "float32", device = "cpu" }}
[[stage]]"""
    more = after.replace('{ kind = "regex", pattern = "[a-m]", most = 9 }', '{ kind = "model", stage = "reward" }')
    done = run(before + reward + more, tmp_path)
    phases = [entry for entry in read_metrics(done.folder / "metrics.jsonl") if "reward/model" in entry]
    assert phases and phases[0]["reward_std"] > 0
    # The policy started from the model before the reward model, which is a run's model only if nothing follows.
    assert "lm_head.weight" in load_file(done.folder / "model/model.safetensors")
    told = preflight(loads((before + reward + more).replace("MORE", "")), measure=False)
    assert not told.problems and [stage.stage for stage in told.stages] == ["01-reward", "02-ppo"]
    with pytest.raises(InputError, match="must be an earlier stage"):
        run(before + "[[stage]]" + more, tmp_path / "alone")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ('prompts = 1', "stage[0].prompts"),
        ('prompt_tokens = [4, 2]', "stage[0].prompt_tokens"),
        ('adapter = { dropout = 0.1 }', "stage[0].adapter.dropout"),
        ('adapter = { method = "prefix" }', "stage[0].adapter.method"),
        ('kl_coef = 0.0\nkl_target = 6.0', "stage[0].kl_target"),
        ('temperature = 0.0', "stage[0].temperature"),
        ('value = "model"\nadapter = { rank = 2 }', "stage[0].value"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused(text: str, more: str, named: str) -> None:
    name = more.split(" = ")[0]
    lines = [line for line in text.splitlines() if not line.startswith(f"{name} =")]
    with pytest.raises(InputError) as error:
        loads("\n".join(lines).replace("MORE", more))
    assert any(named in problem for problem in error.value.problems)


@pytest.mark.parametrize("change", ["dropout = 0.1", "compile = true", "batch_tokens = 512", 'parallel = "zero3"'])
def test_bad_training_settings_are_refused(text: str, change: str) -> None:
    with pytest.raises(InputError) as error:
        loads(text.replace("MORE", "").replace("train = {", f"train = {{ {change},"))
    assert any(f"train.{change.split()[0]}" in problem for problem in error.value.problems)


def test_prompts_of_preferences_are_held_out_as_a_reward_model_holds_them_out(
    materials: Path, text: str, tmp_path: Path
) -> None:
    """The pairs have some prompts several times, and pairs of equal answers, which no reward model learns from."""
    path = tmp_path / "pairs.jsonl"
    same = "".join(json.dumps({"prompt": f"say {n}", "chosen": "it", "rejected": "it"}) + "\n" for n in range(5))
    path.write_text(same + (materials / "pairs.jsonl").read_text())
    done = run(text.replace(str(materials / "chats.jsonl"), str(path)), tmp_path)
    pairs = RewardTask(None, DataParts(DataSettings(source=str(path), validation=0.2)))
    held_out, learned = ({pairs.group(row) for row in pairs.splits[name]} for name in ("development", "train"))
    assert held_out and not held_out & learned
    stage = done.folder / "stages/01-ppo"
    phases = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    read = [sample["prompt"] for phase in phases for sample in phase["samples"]]
    measured = json.loads((stage / "result.json").read_text())["alignment"]["prompts"]
    assert key(read) <= learned and key(measured) <= held_out


def key(prompts: list[str]) -> set[str]:
    """Prompts as the reward model's task groups them."""
    return {repr([{"role": "user", "content": prompt}]) for prompt in prompts}


@pytest.mark.parametrize("rewards", ["", 'rewards = [{ kind = "task" }]'])
def test_nothing_to_reward_is_refused_before_anything_runs(text: str, tmp_path: Path, rewards: str) -> None:
    lines = [line for line in text.splitlines() if not line.startswith("rewards =")]
    with pytest.raises(InputError) as error:
        run("\n".join(lines), tmp_path, rewards)
    (problem,) = error.value.problems
    assert problem.startswith("stage ppo: rewards: ") and "no task judges the answers" in problem
    assert not (tmp_path / "tiny").exists()


def test_a_small_policy_trains_in_float32_on_a_cpu(text: str, tmp_path: Path) -> None:
    done = run(text.replace('precision = "float32", ', ""), tmp_path)
    assert json.loads((done.folder / "stages/01-ppo/result.json").read_text())["precision"] == "float32"
    phases = [entry for entry in read_metrics(done.folder / "metrics.jsonl") if "sampler_gap" in entry]
    assert max(phase["sampler_gap"] for phase in phases) < 1e-4


def test_a_missing_reward_model_is_named_before_anything_runs(text: str, tmp_path: Path) -> None:
    reward = '{ kind = "model", folder = "runs/sentiment/model" }'
    with pytest.raises(InputError) as error:
        run(text.replace('{ kind = "regex", pattern = "[a-m]", most = 9 }', reward), tmp_path)
    (problem,) = error.value.problems
    assert problem.startswith("stage[0].rewards[0].folder:") and "`quatrain run sentiment` makes it" in problem


def test_completions_that_leave_no_room_for_a_prompt_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_new_tokens: 600; the context of 64 tokens .* must be at most 63"):
        run(text.replace("max_new_tokens = 6", "max_new_tokens = 600"), tmp_path)


def test_a_reward_that_breaks_before_the_first_step_leaves_its_completions(text: str, tmp_path: Path) -> None:
    """Held-out prompts are scored first, with the model before training."""
    (tmp_path / "mine.py").write_text("def broken(examples, completions):\n    return [float('nan')] * len(examples)\n")
    reward = f'{{ kind = "function", function = "{tmp_path}/mine.py:broken" }}'
    with pytest.raises(RewardError, match=r'"function" returned nan.*failed-rollouts\.jsonl'):
        run(text.replace('{ kind = "regex", pattern = "[a-m]", most = 9 }', reward), tmp_path)
    lines = (tmp_path / "tiny/stages/01-ppo/failed-rollouts.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[0])["prompt"].startswith("say ")


def test_prompts_that_do_not_fit_are_left_out(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompt to learn from"):
        run(text, tmp_path, "context = 8")


@pytest.mark.slow
def test_the_preflight_measures_whole_phases(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", forks.python())
    told = preflight(loads(text.replace("MORE", "")))
    (stage,) = told.stages
    assert not told.problems and stage.steps == 6 and stage.seconds and stage.data.samples


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrain.training.trainer import Trainer

    text = text.replace("log_every = 1", "log_every = 1, checkpoint_every = 1")
    whole = run(text, tmp_path / "whole")
    step = Trainer.step
    for stop in (1, 3, 5):

        def ending(trainer: Trainer, stop: int = stop) -> None:
            if trainer.steps_done == stop:
                raise KeyboardInterrupt
            step(trainer)

        monkeypatch.setattr(Trainer, "step", ending)
        with pytest.raises(InterruptedRun):
            run(text, tmp_path / str(stop))
        monkeypatch.setattr(Trainer, "step", step)
        resumed = run(text, tmp_path / str(stop))
        ours, theirs = (load_file(each.folder / "model/model.safetensors") for each in (whole, resumed))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_two_processes_are_one(text: str, tmp_path: Path) -> None:
    """PPO, and GRPO after it: the processes divide the draws, and share statistics, attempts and micro-batches."""
    ppo = text.replace("MORE", "")
    grpo = ppo.partition("[[stage]]")[2].replace('kind = "ppo"', 'kind = "grpo"\nvariant = "dapo"')
    both = f"{ppo}[[stage]]{grpo}"
    path = tmp_path / "tiny.toml"
    path.write_text(both, encoding="utf-8")
    one = run(both, tmp_path / "one")
    done = two_forks(path, folder=tmp_path / "two")
    assert done.returncode == 0, done.stderr[-4000:]
    for stage in ("stages/01-ppo/model", "model"):
        ours, theirs = (load_file(each / stage / "model.safetensors") for each in (one.folder, tmp_path / "two/tiny"))
        assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)
    first, second = (
        [entry for entry in read_metrics(folder / "metrics.jsonl") if "reward" in entry]
        for folder in (one.folder, tmp_path / "two/tiny")
    )
    assert {"kl", "groups_without_spread", "clip_fraction"} <= {name for entry in first for name in entry}
    timed = ("seconds", "per_second")
    for ours, theirs in zip(first, second, strict=True):
        for name, value in ours.items():
            if isinstance(value, float) and not name.endswith(timed):
                assert theirs[name] == pytest.approx(value, abs=1e-4), name
