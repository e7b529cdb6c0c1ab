"""The recipes of sentiment by reinforcement learning, with a tiny policy and the classifier that their own recipe makes
of it, and that of SQL by execution.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_models import make_folder

import quatrain
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.runs.folder import Run
from quatrain.runs.recipe import load

pytestmark = pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    policy = make_folder(place / "policy", context=128, kind="bpe", vocab_size=280, chat_template=None)
    small = ["data.examples=200", "evaluate.examples=20", *(f"stage.0.train.{key}" for key in ("epochs=none", "steps=4",
             "evaluate_every=2"))]  # fmt: skip
    judge = quatrain.run(
        load("sentiment-gpt2", [f"model.folder={policy}", *small]), runs_dir=place, reporter=SilentReporter()
    )
    assert "accuracy" in judge.results[0]["scores"]["test"]
    return {"policy": policy, "classifier": judge.model}


def run(name: str, folders: dict[str, Path], place: Path, *more: str) -> Run:
    small = [
        f"model.folder={folders['policy']}",
        f"stage.ppo.rewards.0.folder={folders['classifier']}",
        *("stage.ppo.prompts=6", "stage.ppo.held_out=6", "stage.ppo.max_new_tokens=4", "evaluate.max_new_tokens=4"),
        *(f"stage.ppo.train.{key}" for key in ("steps=4", "evaluate_every=2", "warmup_steps=1")),
    ]
    return quatrain.run(load(name, [*small, *more]), runs_dir=place, reporter=SilentReporter())


def test_sentiment_ppo_and_its_flip(folders: dict[str, Path], tmp_path: Path) -> None:
    done = run("sentiment-ppo", folders, tmp_path)
    (result,) = done.results
    before = result["alignment"]["before"]
    assert len(before["rewards"]) == 6 == len(before["true"]["words"]) and result["alignment"]["controls"] == []
    true = [entry["true/words"] for entry in read_metrics(done.folder / "metrics.jsonl") if "true/words" in entry]
    assert len(true) == 2
    flips = ["stage.ppo.rewards.0.flip=true", "stage.ppo.true_rewards.0.flip=true", "name=negative"]
    flipped = run("sentiment-ppo", folders, tmp_path, *flips).results[0]["alignment"]["before"]
    assert flipped["texts"] == before["texts"]  # the same prompts and seeds
    assert flipped["rewards"] == [-score for score in before["rewards"]]
    assert flipped["true"]["words"] == [-score for score in before["true"]["words"]]


def test_sentiment_control_rewards_what_is_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    done = run("sentiment-control", folders, tmp_path)
    compared = done.results[0]["alignment"]
    assert compared["controls"] == ["0", "neutral", "1"] * 2
    assert [prompt.split()[0] for prompt in compared["prompts"][:3]] == ["[negative]", "[neutral]", "[positive]"]
    assert all(score <= 0 for score in compared["before"]["rewards"][1::3])
    report = done.report.read_text(encoding="utf-8")
    assert all(f"asked for: {control}" in report for control in ("0", "neutral", "1"))


@pytest.mark.slow
def test_statements_are_executed_for_their_reward(tmp_path: Path) -> None:
    small = [
        *("data.examples=120", "evaluate.examples=2", "tokenizer.vocab_size=512", "model.hidden_size=32"),
        *("model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=64"),
        *("stage.pretrain.train.batch_tokens=1024", "stage.finetune.train.batch_tokens=1024"),
        *(
            f"stage.{kind}.train.{key}"
            for kind in ("pretrain", "finetune", "grpo")
            for key in ("steps=2", "warmup_steps=1")
        ),
        *("stage.grpo.prompts=4", "stage.grpo.samples=2", "stage.grpo.max_new_tokens=6", "stage.grpo.held_out=2"),
        *("stage.grpo.rollout_batch=8", "stage.grpo.train.evaluate_every=0", "stage.finetune.evaluate=false"),
    ]
    done = quatrain.run(load("grpo-sql", small), runs_dir=tmp_path, reporter=SilentReporter())
    rollouts = (done.folder / "stages" / "04-grpo" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rollouts) >= 2 and done.results[-1]["scores"]
