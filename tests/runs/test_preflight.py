"""`quatrain check` on whole recipes: what it says of each stage, measures and refuses; and the same before a run."""

import json
import sys
from pathlib import Path

import forks
import pytest
import torch
from quick_set import some

import quatrain
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.runs.preflight import preflight
from quatrain.runs.recipe import loads

HEAD = (Path(__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
TWO = """
[[stage]]
kind = "pretrain"
train = { steps = 40, batch_tokens = 192, learning_rate = 3e-3, warmup_steps = 2, evaluate_every = 20, device = "cpu" }
[[stage]]
kind = "finetune"
data = { source = 'CHATS' }
adapter = { method = "lora", rank = 2, alpha = 4 }
train = { epochs = 2, batch_tokens = 192, learning_rate = 3e-3, warmup_steps = 2, device = "cpu" }
"""


@pytest.fixture(scope="module")
def text(materials: Path) -> str:
    return HEAD.format(text=materials / "text.txt") + TWO.replace("CHATS", str(materials / "chats.jsonl"))


@pytest.mark.slow
def test_each_stage_is_told_and_measured(text: str, tmp_path: Path) -> None:
    told = preflight(loads(text), folder=tmp_path)
    assert not told.problems and [stage.stage for stage in told.stages] == ["02-pretrain", "03-finetune"]
    pretrain, finetune = told.stages
    assert pretrain.steps == 40 and pretrain.trained == pretrain.parameters > 0
    assert finetune.trained < finetune.parameters and finetune.data.examples == 36
    assert told.seconds == pytest.approx(pretrain.seconds + finetune.seconds)
    for stage in told.stages:
        assert stage.seconds > 0 and stage.tokens_per_second > 0 and stage.precision in ("float32", "bfloat16")
        assert stage.peak > 50_000_000 and stage.memory["weights"] > 0 and stage.memory["optimizer"] > 0
        assert 0 < stage.disk < told.free
    assert not list(tmp_path.iterdir()), "a check leaves nothing behind"
    done = quatrain.run(loads(text), runs_dir=tmp_path, reporter=SilentReporter())
    for stage, result in zip(told.stages, done.results[1:], strict=True):
        assert (result["parameters"], result["trainable_parameters"], result["steps"]) == (
            stage.parameters, stage.trained, stage.steps)  # fmt: skip


@pytest.mark.parametrize("steps", some([1, 2, 3], [1]))
def test_a_training_of_few_steps_is_measured(text: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", forks.python())
    short = text[: text.index('[[stage]]\nkind = "finetune"')].replace("steps = 40", f"steps = {steps}")
    told = preflight(loads(short.replace("warmup_steps = 2", 'warmup_steps = 0, schedule = "constant"')))
    assert not told.problems and told.stages[0].seconds > 0


def test_sizes_that_this_machine_cannot_hold_are_refused_by_check_and_by_run(text: str, tmp_path: Path) -> None:
    short = text[: text.index('[[stage]]\nkind = "finetune"')]
    large = [
        short.replace("hidden_size = 16", "hidden_size = 1000000"),
        short.replace("batch_tokens = 192", "batch_tokens = 1000000000000000"),
        short.replace("batch_tokens = 192", "batch_tokens = 10000000000000000000000000000000"),
        short.replace("num_hidden_layers = 2", "num_hidden_layers = 100000"),
    ]
    for number, wanted in enumerate(large):
        assert wanted != short, number
        with pytest.raises(InputError):
            told = preflight(loads(wanted), measure=False)
            raise InputError("told", told.problems) if told.problems else AssertionError(wanted)
        with pytest.raises(InputError):
            quatrain.run(loads(wanted), runs_dir=tmp_path / str(number), reporter=SilentReporter())


def test_what_goes_by_validations_that_there_are_not_is_told(text: str) -> None:
    short = text[: text.index('[[stage]]\nkind = "finetune"')].replace(
        "evaluate_every = 20", 'evaluate_every = 20, keep = "best"'
    )
    told = preflight(loads(short.replace("[data]", "[data]\nvalidation = 0", 1)), measure=False)
    assert any("the last weights are kept" in note for note in told.stages[0].notes)
    told = preflight(loads(short.replace("warmup_steps = 2", "warmup_steps = 40")), measure=False)
    assert any("never reaches" in note for note in told.stages[0].notes)


def test_without_steps_it_says_nothing_of_time(text: str) -> None:
    told = preflight(loads(text), measure=False)
    assert told.seconds is None and all(stage.seconds is None and not stage.memory for stage in told.stages)


def test_the_command(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(text, encoding="utf-8")
    assert main(["check", str(recipe), "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert "02-pretrain (causal)" in out and "03-finetune (chat)" in out
    assert "⟦" in out and "<|im_end|>⟧" in out and "say " in out
    assert "special <|im_end|>" in out and "of disk at most" in out
    assert main(["check", str(recipe), "--no-measure", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["problems"] == [] and told["stages"][1]["data"]["examples"] == 36


def test_what_cannot_work_is_refused_by_check_and_by_run(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A template that never ends a turn with a token that is learned."""
    silent = "{% for message in messages %}{{ message['role'] + ': ' }}{% generation %}{{ message['content'] }}" \
             "{% endgeneration %}{{ '<|im_end|>' }}{% endfor %}"  # fmt: skip
    other = f'special_tokens = ["<|im_end|>"]\nchat_template = {json.dumps(silent)}'
    recipe = loads(text.replace('chat_template = "chatml"', other))
    told = preflight(recipe, measure=False)
    assert any("every token" in problem or "never stop" in problem for problem in told.problems), told.problems
    with pytest.raises(InputError) as caught:
        quatrain.run(recipe, runs_dir=tmp_path, reporter=SilentReporter())
    assert "quatrain check" in caught.value.message and caught.value.problems


def test_a_model_that_does_not_fit_is_refused_without_a_step(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrain.planning import limits
    from quatrain.runs import job_checks as module

    check_training = module.check_training

    def on_a_small_machine(*sizes: object, **named: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(limits, "available_memory", lambda device: 1000)
            check_training(*sizes, **named)

    monkeypatch.setattr(module, "check_training", on_a_small_machine)
    told = preflight(loads(text))
    assert len([problem for problem in told.problems if "this machine has 1.0 kB left" in problem]) == 2
    assert all(stage.seconds is None for stage in told.stages)


def test_a_precision_without_instructions_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 on a CPU of before 2022 runs, at a twentieth of the speed, and nothing but the clock would say so."""
    from quatrain.runs import job_checks as module

    speeds = {"bfloat16": 0.04, "float16": 0.0}
    monkeypatch.setattr(module, "relative_speed", lambda precision, device: speeds[precision])
    for precision in ("bfloat16", "float16", "auto"):
        given = loads(text.replace('device = "cpu"', f'device = "cpu", precision = "{precision}"'))
        notes = [note for stage in preflight(given, measure=False).stages for note in stage.notes]
        named = [note for note in notes if note.startswith("train.precision")]
        assert len(named) == (2 if precision == "bfloat16" else 0), notes
        assert all("bfloat16; its matrix products take 25 times as long as those of float32" in note for note in named)


def test_a_full_disk_is_foreseen(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrain.runs import preflight as module

    monkeypatch.setattr(module, "free_disk", lambda path: 10)
    assert any("10 are free" in problem for problem in module.preflight(loads(text), measure=False).problems)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
