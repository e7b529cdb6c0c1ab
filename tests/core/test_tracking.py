"""Trackers really write what the trainer logs; one that fails is left, and nothing else is lost."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest

import quatrain
from quatrain.core import tracking
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.core.tracking import Trackers
from quatrain.runs.recipe import loads

ENTRIES = [
    {"step": step, "loss": 3.0 / step, "validation_loss": 1.0, "note": "text", "done": True} for step in (1, 2, 3)
]


def has(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def opened(names: list[str], folder: Path, warnings: list[str], resume_step: int = 0) -> Trackers:
    return Trackers(names, folder, run="tiny", stage="02-pretrain", config={"seed": 0}, resume_step=resume_step,
                    warn=warnings.append)  # fmt: skip


@has("tensorboard")
def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    warnings: list[str] = []
    with opened(["tensorboard"], tmp_path, warnings) as trackers:
        for entry in ENTRIES:
            trackers.log(entry)
    with opened(["tensorboard"], tmp_path, warnings, resume_step=2) as trackers:
        trackers.log({"step": 3, "loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard/02-pretrain")).Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss")] == [(1, 3.0), (2, 1.5), (3, 0.5)]
    assert events.Tags()["scalars"] == ["loss", "validation_loss"] and not warnings


@has("wandb")
def test_wandb_writes_offline_below_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    warnings: list[str] = []
    with opened(["wandb"], tmp_path, warnings) as trackers:
        trackers.log(ENTRIES[0])
    assert not warnings and list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@has("trackio")
def test_trackio_keeps_its_database_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    warnings: list[str] = []
    with opened(["trackio"], tmp_path, warnings) as trackers:
        for entry in ENTRIES:
            trackers.log(entry)
    assert not warnings and not capsys.readouterr().out
    with sqlite3.connect(tmp_path / "quatrain.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(values)["loss"]) for step, values in rows] == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_a_tracker_that_fails_is_left_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict]] = []

    class Broken:
        def __init__(self, *given: object):
            pass

        def log(self, stage: str, step: int, values: dict) -> None:
            raise OSError("no route")

        def close(self) -> None:
            raise AssertionError("it was left")

    class Whole(Broken):
        def log(self, stage: str, step: int, values: dict) -> None:
            told.append((step, dict(values)))

        def close(self) -> None:
            told.append((-1, {}))

    monkeypatch.setattr(tracking, "TRACKERS", {"wandb": Broken, "tensorboard": Whole})
    warnings: list[str] = []
    with opened(["wandb", "tensorboard"], tmp_path, warnings) as trackers:
        for entry in ENTRIES:
            trackers.log(entry)
    (warning,) = warnings
    assert "wandb failed and was disabled (OSError: no route)" in warning
    assert told == [(entry["step"], {"loss": entry["loss"], "validation_loss": 1.0}) for entry in ENTRIES] + [(-1, {})]


def test_what_is_missing_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = (Path(__file__).parents[1] / "runs" / "recipes" / "tiny.toml").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50)
    recipe = loads('tracking = ["trackio"]\n' + head.format(text=tmp_path / "text.txt"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        quatrain.run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter())
    assert caught.value.problems == [
        'tracking: "trackio" needs the library trackio; install it with: pip install trackio'
    ]
    with pytest.raises(InputError, match=r'tracking\[0\]: "tensorbord"; must be one of .*did you mean tensorboard'):
        loads('tracking = ["tensorbord"]\n' + head.format(text="x"))


@has("tensorboard")
def test_a_run_is_tracked(tmp_path: Path) -> None:
    head = (Path(__file__).parents[1] / "runs" / "recipes" / "tiny.toml").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    train = "train = { steps = 4, batch_tokens = 96, warmup_steps = 1, log_every = 1, evaluate_every = 2 }"
    text = 'tracking = ["tensorboard"]\n' + head.format(text=tmp_path / "text.txt")
    text += f'[[stage]]\nkind = "pretrain"\n{train}\n'
    done = quatrain.run(loads(text), runs_dir=tmp_path / "runs", reporter=SilentReporter())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(done.folder / "tensorboard/02-pretrain")).Reload()
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert len(events.Scalars("validation_loss")) == 2
