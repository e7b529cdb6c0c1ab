"""A run that is killed at any moment and started again makes the very weights of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quatrain
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.runs.recipe import load

HEAD = (Path(__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
STEPS = 40

STAGES = f"""
[[stage]]
kind = "pretrain"
evaluate = false
[stage.train]
steps = {STEPS}
batch_tokens = 192
optimizer = "muon"
warmup_steps = 2
dropout = 0.1
checkpoint_every = 2
evaluate_every = 10
log_every = 1
[[stage]]
kind = "finetune"
evaluate = false
data.source = 'CHATS'
[stage.adapter]
rank = 2
alpha = 4
dropout = 0.1
[stage.train]
steps = {STEPS}
batch_tokens = 192
accumulation = 2
warmup_steps = 2
dropout = 0.1
checkpoint_every = 2
log_every = 1
"""


def started(recipe: Path, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quatrain", "run", str(recipe), "--runs-dir", str(runs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps_of(folder: Path, stage: str) -> int:
    """The last step of a stage that the log knows; it may be half written."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    return sum(f'"{stage}"' in line and '"loss"' in line for line in lines)


def kill_in(process: subprocess.Popen[str], folder: Path, stage: str, step: int, seconds: float) -> bool:
    """Kill the process some moments after it has reached a step of a stage; False where it was through before."""
    while process.poll() is None:
        if steps_of(folder, stage) >= step:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.002)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_in_pretraining_and_in_finetuning(materials: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    text = HEAD.format(text=materials / "text.txt") + STAGES.replace("CHATS", str(materials / "chats.jsonl"))
    recipe.write_text(text, encoding="utf-8")
    whole = quatrain.run(load(recipe), runs_dir=tmp_path / "whole", reporter=SilentReporter()).folder

    chance = random.Random(time.time_ns())
    folder = tmp_path / "cut" / "tiny"
    killed = []
    for stage in ("02-pretrain", "03-finetune"):
        step, seconds = chance.randint(3, STEPS - 15), chance.uniform(0, 0.02)
        if kill_in(started(recipe, tmp_path / "cut"), folder, stage, step, seconds):
            killed.append((stage, step, seconds))
    assert killed, "both were through before they could be killed"
    last = started(recipe, tmp_path / "cut")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert "resumes at step" in said or killed[-1][0] != "03-finetune", (killed, said)

    for name in (
        "stages/01-tokenizer/tokenizer/tokenizer.json",
        "stages/02-pretrain/model/model.safetensors",
        "stages/03-finetune/adapter/adapter_model.safetensors",
        "stages/03-finetune/model/model.safetensors",
        "model/model.safetensors",
    ):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), (name, killed)
    logs = [
        [
            (line["stage"], line["step"], line.get("loss"), line.get("validation_loss"))
            for line in read_metrics(each / "metrics.jsonl")
        ]
        for each in (whole, folder)
    ]
    assert logs[0] == logs[1], killed
