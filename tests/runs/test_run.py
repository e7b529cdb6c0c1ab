"""Runs: order, resuming, changed recipes, locks and folders that cannot be used.

The stages here are of the test's own: they write small files through the same context as the real ones.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import quatrain
from quatrain.core.errors import InputError, InterruptedRun, QuatrainError
from quatrain.core.locks import FolderLock
from quatrain.core.progress import MetricsLog, PlainReporter, SilentReporter, read_metrics
from quatrain.runs.recipe import Recipe, load, loads
from quatrain.runs.runner import Run, run
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages import specs

FULL = Path(__file__).parent / "recipes" / "full.toml"


class Stages:
    """Stands behind every kind of stage: notes who was called with what, and fails on request."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.contexts: dict[str, StageContext] = {}
        self.fail: dict[str, BaseException] = {}
        self.found_model: list[str] = []

    def __call__(self, settings: object, context: StageContext) -> StageResult:
        kind = settings.kind  # type: ignore[attr-defined]
        self.calls.append(context.name)
        self.contexts[context.name] = context
        folder = context.tokenizer_folder if kind == "tokenizer" else context.model_folder
        if folder.exists():
            self.found_model.append(context.name)
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"made by": context.name}))
        (folder / "weights.bin").write_bytes(b"w" * 2_000_000)
        checkpoint = context.checkpoints / "step-5"
        resume = 5 if checkpoint.is_dir() else 0
        with MetricsLog(context.metrics_path, context.name, resume_step=resume) as log:
            for step in range(resume + 1, 11):
                log.write(step, loss=1 / step)
                if step == 5:
                    checkpoint.mkdir(parents=True)
                if step == 7 and kind in self.fail:
                    raise self.fail.pop(kind)
        kinds = {"new values": {"join2": {"right": 0, "count": 2}, "count": {"right": 2, "count": 2}}}
        return StageResult(tokens=10, scores={"new values": {"execution_accuracy": 0.5, "count": 4}}, kinds=kinds)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    made = Stages()
    for kind, spec in specs().items():
        monkeypatch.setitem(specs(), kind, replace(spec, run=made))
    yield made


ALL = ["01-tokenizer", "02-pretrain", "03-finetune", "04-dpo", "05-quantize"]


def go(folder: Path, *overrides: str, restart: bool = False, reuse: bool = False) -> Run:
    return run(FULL, overrides, runs_dir=folder, restart=restart, reuse=reuse, reporter=SilentReporter())


def test_stages_run_in_order_and_hand_their_work_on(tmp_path: Path, stages: Stages) -> None:
    done = go(tmp_path)
    assert stages.calls == ALL
    folder = tmp_path / "full"
    assert done.folder == folder
    assert stages.contexts["01-tokenizer"].previous_model is None
    assert stages.contexts["02-pretrain"].tokenizer == folder / "stages/01-tokenizer/tokenizer"
    assert stages.contexts["02-pretrain"].previous_model is None
    assert stages.contexts["04-dpo"].previous_model == folder / "stages/03-finetune/model"
    assert stages.contexts["05-quantize"].shared is stages.contexts["01-tokenizer"].shared
    assert done.model == folder / "model"
    assert json.loads((folder / "model/config.json").read_text()) == {"made by": "05-quantize"}
    assert os.path.samefile(folder / "model/weights.bin", folder / "stages/05-quantize/model/weights.bin")
    assert loads((folder / "recipe.toml").read_text()) == load(FULL)
    assert loads((folder / "model/recipe.toml").read_text()) == load(FULL)
    assert "50.0%" in (folder / "model/README.md").read_text()
    assert done.report is not None and "<html" in done.report.read_text(encoding="utf-8")
    result = json.loads((folder / "stages/04-dpo/result.json").read_text())
    assert result["kind"] == "dpo" and result["name"] == "04-dpo" and result["finished"] is True
    assert result["tokens"] == 10 and result["seconds"] >= 0 and result["peak_memory_bytes"] > 1e6
    state = json.loads((folder / "run.json").read_text())
    spent = [json.loads((folder / "stages" / name / "result.json").read_text())["energy"]["kwh"] for name in ALL]
    assert state["energy"]["kwh"] == pytest.approx(sum(spent)) and all(each >= 0 for each in spent)
    assert "- Energy: " in (folder / "model/README.md").read_text()
    assert "Energy of the run: " in done.report.read_text(encoding="utf-8")


def test_a_finished_run_does_nothing_again(tmp_path: Path, stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    stages.calls.clear()
    done = run(FULL, runs_dir=tmp_path, reporter=PlainReporter(sys.stdout))
    assert done.done_before and stages.calls == []
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert [result["name"] for result in done.results] == ALL


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault"), MemoryError()])
def test_an_interrupted_run_goes_on_in_the_stage(tmp_path: Path, stages: Stages, error: BaseException) -> None:
    stages.fail["finetune"] = error
    expected = {KeyboardInterrupt: InterruptedRun, MemoryError: QuatrainError}.get(type(error), type(error))
    with pytest.raises(expected):
        go(tmp_path)
    assert not (tmp_path / "full/stages/03-finetune/result.json").exists()
    assert not (tmp_path / "full/.lock").exists()
    stages.calls.clear()
    go(tmp_path)
    assert stages.calls == ALL[2:]
    assert stages.found_model == []
    steps = [line["step"] for line in read_metrics(tmp_path / "full/metrics.jsonl") if line["stage"] == "03-finetune"]
    assert steps == list(range(1, 11))


def gated(folder: Path, limit: float) -> Run:
    gate = {"set": "new values", "metric": "execution_accuracy", "at_least": limit}
    recipe = load(
        FULL, [f"stage.finetune.gates=[{{ set = 'new values', metric = 'execution_accuracy', at_least = {limit} }}]"]
    )
    assert recipe.stage[2].gates[0].model_dump(exclude_none=True) == gate
    return run(recipe, runs_dir=folder, reporter=PlainReporter(sys.stdout))


def test_a_gate_stops_the_run_and_another_limit_repeats_no_stage(
    tmp_path: Path, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(QuatrainError, match=r"execution_accuracy 50.0%, must be at least 60.0%"):
        gated(tmp_path, 0.6)
    assert stages.calls == ALL[:3]
    page = (tmp_path / "full/report.html").read_text(encoding="utf-8")
    assert "not passed" in page and "at least 60.0%" in page
    stages.calls.clear()
    gated(tmp_path, 0.5)
    assert stages.calls == ALL[3:]
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 gates passed" in shown and "03-finetune: passed" in shown
    state = json.loads((tmp_path / "full/run.json").read_text())
    assert state["gates"][0]["passed"] and state["gates"][0]["value"] == 0.5
    stages.calls.clear()
    with pytest.raises(QuatrainError, match=r"at least 70\.0%"):  # a finished run with a stricter gate
        gated(tmp_path, 0.7)
    assert stages.calls == []


def test_a_full_disk_is_said_and_costs_nothing_made(tmp_path: Path, stages: Stages) -> None:
    stages.fail["dpo"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(QuatrainError, match="disk is full"):
        go(tmp_path)
    stages.calls.clear()
    go(tmp_path)
    assert stages.calls == ALL[3:]


def test_a_changed_recipe_is_refused_with_what_changed_and_what_stays_valid(tmp_path: Path, stages: Stages) -> None:
    go(tmp_path)
    stages.calls.clear()
    with pytest.raises(InputError) as caught:
        go(tmp_path, "stage.dpo.beta=0.2")
    text = str(caught.value)
    assert caught.value.problems == ["stage[3].beta: 0.1 -> 0.2"]
    assert "keep 01-tokenizer, 02-pretrain, 03-finetune" in text and "redo 04-dpo, 05-quantize" in text
    assert "--restart" in text and "name=full-2" in text
    assert stages.calls == []
    go(tmp_path, "stage.dpo.beta=0.2", reuse=True)
    assert stages.calls == ALL[3:]
    assert loads((tmp_path / "full/recipe.toml").read_text()).stage[3].beta == 0.2
    stages.calls.clear()
    assert go(tmp_path, "stage.dpo.beta=0.2").done_before


def test_a_seed_that_changed_leaves_nothing_to_reuse(tmp_path: Path, stages: Stages) -> None:
    go(tmp_path)
    (tmp_path / "full/shop.sqlite").write_bytes(b"made of the old seed")
    (tmp_path / "full/notes.txt").write_text("the user's own")
    with pytest.raises(InputError) as caught:
        go(tmp_path, "seed=1")
    assert "--reuse" not in str(caught.value)
    stages.calls.clear()
    go(tmp_path, "seed=1", restart=True)
    assert stages.calls == ALL
    assert not (tmp_path / "full/shop.sqlite").exists()
    assert (tmp_path / "full/notes.txt").exists()


def test_how_a_run_is_watched_is_no_change(tmp_path: Path, stages: Stages) -> None:
    go(tmp_path)
    assert go(tmp_path, "stage.1.train.log_every=3", "description=other words", "next=[]").done_before


def test_checkpoints_stay_when_only_the_measuring_changes(tmp_path: Path, stages: Stages) -> None:
    go(tmp_path)
    with pytest.raises(InputError) as caught:
        go(tmp_path, "evaluate.examples=7")
    assert "keep 01-tokenizer, still valid" in str(caught.value)
    kept = tmp_path / "full/stages/02-pretrain/checkpoints/step-5"
    stages.calls.clear()
    go(tmp_path, "evaluate.examples=7", reuse=True)
    assert kept.is_dir()
    assert stages.calls == stages.found_model == ALL[1:]


def test_stages_that_the_recipe_no_longer_has_are_removed(tmp_path: Path, stages: Stages) -> None:
    go(tmp_path)
    recipe = load(FULL)
    shorter = recipe.model_copy(update={"stage": recipe.stage[:3]})
    done = run(shorter, runs_dir=tmp_path, reuse=True, reporter=SilentReporter())
    assert sorted(path.name for path in (tmp_path / "full/stages").iterdir()) == ALL[:3]
    assert json.loads((done.folder / "model/config.json").read_text()) == {"made by": "03-finetune"}


def test_a_file_of_the_user_that_changed_is_noticed(tmp_path: Path, stages: Stages) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It was a dark night.")
    path = tmp_path / "recipe.toml"
    text = FULL.read_text().replace('database = "shop"', f"source = '{book}'")
    path.write_text(text[: text.index('[[stage]]\nkind = "dpo"')])
    assert run(path, runs_dir=tmp_path, reporter=SilentReporter()).model
    assert run(path, runs_dir=tmp_path, reporter=SilentReporter()).done_before
    book.write_text("It was a bright day.")
    with pytest.raises(InputError) as caught:
        run(path, runs_dir=tmp_path, reporter=SilentReporter())
    assert caught.value.problems == ["data.source: the content has changed since the run"]
    book.unlink()
    assert run(path, runs_dir=tmp_path, reporter=SilentReporter()).done_before


def test_what_failed_before_any_stage_finished_is_not_held_against_the_next(tmp_path: Path, stages: Stages) -> None:
    stages.fail["tokenizer"] = QuatrainError("no")
    (tmp_path / "full").mkdir()
    with pytest.raises(QuatrainError):
        go(tmp_path)
    for path in (tmp_path / "full/stages/01-tokenizer/checkpoints").glob("*"):
        path.rmdir()
    assert len(go(tmp_path, "seed=5").results) == 5


@pytest.mark.parametrize("missing", ["result.json", "started.json"])
def test_a_stage_that_is_gone_is_made_again_with_all_that_follow(tmp_path: Path, stages: Stages, missing: str) -> None:
    go(tmp_path)
    stages.calls.clear()
    (tmp_path / "full/stages/03-finetune" / missing).unlink()
    go(tmp_path)
    assert stages.calls == (ALL[2:] if missing == "result.json" else [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": true, "stages": []}'])
def test_a_damaged_state_file_costs_no_stage(tmp_path: Path, stages: Stages, content: str) -> None:
    go(tmp_path)
    stages.calls.clear()
    (tmp_path / "full/run.json").write_text(content)
    go(tmp_path)
    assert stages.calls == []
    assert go(tmp_path).done_before


def test_a_recipe_of_a_run_that_cannot_be_read_is_said(tmp_path: Path, stages: Stages) -> None:
    go(tmp_path)
    (tmp_path / "full/recipe.toml").write_text("name = ")
    (tmp_path / "full/run.json").unlink()
    with pytest.raises(InputError, match="cannot be read as a recipe"):
        go(tmp_path)


def test_a_folder_that_no_run_made_is_left_alone(tmp_path: Path, stages: Stages) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(InputError, match="holds files and is no run"):
            go(tmp_path, restart=restart)
    assert (tmp_path / "full/thesis.txt").read_text() == "years of work"


def test_what_a_kill_left_before_the_first_file_is_removed(tmp_path: Path, stages: Stages) -> None:
    """A temporary file of the recipe was taken for a file of the user's, and the run refused ever after."""
    left = [tmp_path / "full" / f".{name}.0123456789ab.partial" for name in ("recipe.toml", "writable")]
    left[0].parent.mkdir()
    for path in left:
        path.touch()
    assert go(tmp_path).model is not None
    assert not any(path.exists() for path in left)


def test_a_fault_in_the_report_costs_no_run(
    tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from quatrain.evaluation import report

    def fail(folder: Path) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(report, "write_report", fail)
    caplog.set_level("DEBUG", "quatrain")
    out = io.StringIO()
    done = run(FULL, runs_dir=tmp_path, reporter=PlainReporter(out))
    assert done.model and done.report is None
    assert "warning: no report was written (KeyError: 'no such thing'). This is a bug" in out.getvalue()
    assert "Traceback" not in out.getvalue() and "in fail" in caplog.text
    assert go(tmp_path).done_before


def test_gpt2_folders_are_not_quantized(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    text = f"name = 'x'\n[model]\nfolder = '{tmp_path}'\n[[stage]]\nkind = 'quantize'\n"
    with pytest.raises(InputError) as caught:
        run(loads(text), runs_dir=tmp_path / "runs", reporter=SilentReporter())
    assert "holds a gpt2 model, whose files fuse or transpose" in caught.value.problems[0]
    assert not (tmp_path / "runs").exists()


def test_a_file_in_the_way(tmp_path: Path, stages: Stages) -> None:
    (tmp_path / "full").write_text("x")
    with pytest.raises(InputError, match="a file is in the way"):
        go(tmp_path)
    with pytest.raises(InputError, match="a file is in the way"):
        go(tmp_path / "full" / "deeper")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path, stages: Stages) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written to"):
            go(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_made(tmp_path: Path, stages: Stages) -> None:
    with pytest.raises(InputError, match="cannot be written to"):
        go(Path("/proc/nowhere") if sys.platform == "linux" else Path("/dev/null/x"))


def test_two_processes_in_one_run_folder(tmp_path: Path, stages: Stages) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom quatrain.core.locks import FolderLock\n"
        f"with FolderLock(Path({str(tmp_path / 'full')!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "full").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(QuatrainError, match=f"in use by process {holder.pid} since"):
            go(tmp_path)
        assert stages.calls == []
    finally:
        holder.kill()
        holder.wait()
    go(tmp_path)
    assert stages.calls == ALL
    assert not (tmp_path / "full/.lock").exists()


def test_what_a_dead_process_left_is_no_lock(tmp_path: Path) -> None:
    holder = tmp_path / ".lock.json"
    for content in ("", "[]", json.dumps({"pid": 1, "host": "another-machine"})):
        (tmp_path / ".lock").write_text("")
        holder.write_text(content)
        with FolderLock(tmp_path):
            assert json.loads(holder.read_text())["pid"] == os.getpid()
            with pytest.raises(QuatrainError, match=f"in use by process {os.getpid()} since"), FolderLock(tmp_path):
                pass
            holder.write_text(json.dumps({"pid": 7, "host": "another-machine", "since": "noon"}))
            with pytest.raises(QuatrainError, match="process 7 on another-machine since noon"), FolderLock(tmp_path):
                pass
            holder.unlink()
            with pytest.raises(QuatrainError, match="has just started"), FolderLock(tmp_path):
                pass
        assert not holder.exists()


def test_the_package_root_runs_recipes(tmp_path: Path, stages: Stages) -> None:
    done = quatrain.run(load(FULL), runs_dir=tmp_path, reporter=SilentReporter())
    assert isinstance(done, Run)
    assert quatrain.Recipe is Recipe


def test_a_missing_input_is_refused_before_a_folder_is_made(tmp_path: Path, stages: Stages) -> None:
    with pytest.raises(InputError) as caught:
        go(tmp_path / "runs", "data.database=shop.sqlit", "tokenizer.path=none.json")
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "runs").exists()


def test_the_summary_says_what_was_made_and_what_to_try(
    tmp_path: Path, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "with space"
    run(FULL, runs_dir=runs, reporter=PlainReporter(sys.stdout))
    out = capsys.readouterr().out
    assert "stage 3/5: 03-finetune" in out
    assert "quatrain chat" not in out  # these stages make no database
    assert "new values" in out and "50.0%" in out and "peak memory" in out
    assert "new values, wrong: join2 2 of 2\n" in out
    (runs / "full/shop.sqlite").touch()
    run(FULL, runs_dir=runs, reporter=PlainReporter(sys.stdout))
    assert f"quatrain chat '{runs / 'full'}/model' --db '{runs / 'full'}/shop.sqlite'" in capsys.readouterr().out


def test_sigterm_stops_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(quatrain.__file__).parent.parent)!r})
from dataclasses import replace
from quatrain.runs.stage import StageResult
from quatrain.runs.stages import specs
def stage(settings, context):
    folder = context.tokenizer_folder if settings.kind == "tokenizer" else context.model_folder
    folder.mkdir(); (folder / "config.json").write_text("{{}}")
    if settings.kind == "finetune" and len(sys.argv) > 1:
        print("waiting", flush=True); time.sleep(60)
    return StageResult()
for kind, spec in specs().items(): specs()[kind] = replace(spec, run=stage)
from quatrain.cli import main
sys.exit(main(["run", {str(FULL)!r}, "--runs-dir", {str(tmp_path)!r}]))
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    while "waiting" not in first.stdout.readline():
        assert first.poll() is None
    first.terminate()
    _, errors = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "stopped by SIGTERM; what was made is kept" in errors and "Traceback" not in errors
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "02-pretrain, finished before" in second.stdout


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b'"x"', b"[" * 10_000, b"\xff\xfe", b'{"seconds": "x"}', b'{"inputs": []}',
        b'{"stages": 5}', b'{"perplexity": []}', b'{"scores": 5}', b'{"fingerprint": []}',
        b'{"a": ' + b"9" * 5_000 + b"}",
    ],
)  # fmt: skip
def test_a_file_of_a_run_that_no_run_wrote_is_none(tmp_path: Path, content: bytes) -> None:
    from quatrain.runs.folder import read_json

    (tmp_path / "run.json").write_bytes(content)
    assert read_json(tmp_path / "run.json") is None


def test_lines_of_metrics_that_no_run_wrote_are_left_out(tmp_path: Path) -> None:
    from quatrain.core.progress import drop_metrics, read_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"stage": "a", "step": null}\n{"stage": 5, "step": "x"}\n5\n' + "[" * 9_000 + '\n{"stage": "a", "step": 1}\n'
    )
    assert read_metrics(path) == [{"stage": "a", "step": 1}]
    drop_metrics(path, "a", after=0)
    assert path.read_text() == ""
