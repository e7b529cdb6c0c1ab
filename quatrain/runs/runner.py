"""Runs a recipe's stages into a run folder, and resumes interrupted runs.

A stage is finished once its `result.json` exists; this file is written last. It holds a fingerprint of everything that
the result depends on: the stage's settings, the tables of the recipe that it reads, the content of the user's files and
the fingerprint of the stage before. The runner therefore recognizes a finished run without importing torch, and knows
which stages of a changed recipe are still valid.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quatrain.core.atomic import disk_errors, is_leftover, remove_leftovers, write_json, write_text
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.failures import failures_explained, stoppable
from quatrain.core.locks import LOCK_NAME, FolderLock
from quatrain.core.process_memory import peak_memory, reset_peak_memory
from quatrain.core.processes import process_number
from quatrain.core.progress import Reporter, create_reporter, drop_metrics
from quatrain.planning.energy import Energy, EnergyMeter
from quatrain.runs.contexts import stage_context
from quatrain.runs.distributed import announce, dismiss, divided, follow, losses_explained
from quatrain.runs.fingerprints import stage_marks
from quatrain.runs.folder import Run, free_name, link_folder, make_folder, prepare, read_json, written_folder
from quatrain.runs.gates import GateOutcome, check, outcomes
from quatrain.runs.inputs import check_inputs, input_marks, left_out
from quatrain.runs.recipe import Recipe, changes, dumps, load, loads
from quatrain.runs.stage import StageContext, StageResult, stage_name
from quatrain.runs.stages import spec_of

RECIPE_FILE = "recipe.toml"
STATE_FILE = "run.json"
MODEL_FILES = ("config.json", "adapter_config.json")
"""Every model folder has one of these."""
RUN_FILES = (RECIPE_FILE, STATE_FILE, "metrics.jsonl", "report.html", "stages", "model", "shop.sqlite")
"""What a run writes and a restart removes. Any other file in the folder belongs to the user."""


def run(
    recipe: Recipe | str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    restart: bool = False,
    reuse: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Run a recipe, or resume an interrupted run.

    `recipe` is a Recipe, the name of a shipped recipe or the path of a file; `overrides` are strings `a.b=c`. An
    existing run of a different recipe is refused, unless `reuse` keeps the finished stages that are still valid, or
    `restart` deletes its results.

    Raises InputError for problems that the user can fix, QuatrainError for work that failed, and InterruptedRun for
    Ctrl-C and SIGTERM. Finished work stays on disk in every case.
    """
    if not isinstance(recipe, Recipe):
        recipe = load(recipe, overrides, say=(reporter or create_reporter()).info)
    elif list(overrides):
        raise InputError("overrides go with the name or path of a recipe, not with a Recipe")
    folder = Path(runs_dir) / recipe.name
    if process_number()[1] > 1:
        # Before torch is loaded. Otherwise DDP logs a line from every process when all weights are used.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if process_number()[0]:
        with losses_explained():
            follow(recipe, folder)
        return Run(folder, recipe)
    reporter = reporter or create_reporter()
    if not restart:
        done = finished_run(folder, recipe)
        if done is not None:
            from quatrain.runs.summary import report_done_before

            report_done_before(done, reporter)
            dismiss()
            return done
    check_inputs(recipe)
    for line in left_out(recipe):
        reporter.warn(line)
    make_folder(folder)
    with FolderLock(folder), stoppable(), losses_explained():
        finished = _Runner(folder, recipe, reporter).run(restart=restart, reuse=reuse)
    dismiss()
    return finished


def finished_run(folder: Path, recipe: Recipe) -> Run | None:
    """The run in this folder if exactly this recipe has finished there, else None. Reads only small files."""
    state = read_json(folder / STATE_FILE)
    if not state or not state.get("finished"):
        return None
    marks = stage_marks(recipe, input_marks(recipe, state.get("inputs")))
    names = [stage_name(index, stage) for index, stage in enumerate(recipe.stage)]
    results = [read_result(folder, name) for name in names]
    complete = all(
        result is not None and result.get("fingerprint") == mark.fingerprint
        for result, mark in zip(results, marks, strict=True)
    )
    if not complete or state.get("stages") != names:
        return None
    if not all(gate.passed for gate in gate_outcomes(recipe, results)):
        return None  # Its gates have changed: the runner names those that are not passed.
    if state.get("has_model") and not any((folder / "model" / name).is_file() for name in MODEL_FILES):
        return None
    return Run(folder, recipe, [result for result in results if result], done_before=True)


def gate_outcomes(recipe: Recipe, results: Sequence[Mapping[str, Any] | None]) -> list[GateOutcome]:
    """The gates of the stages that have results."""
    return [
        outcome
        for index, (stage, result) in enumerate(zip(recipe.stage, results, strict=False))
        if result is not None
        for outcome in outcomes(stage_name(index, stage), stage.gates, result)
    ]


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """A finished stage's `result.json`, or None."""
    result = read_json(folder / "stages" / name / "result.json")
    return result if result and result.get("finished") else None


class _Runner:
    """One call of `run`, in a locked folder."""

    def __init__(self, folder: Path, recipe: Recipe, reporter: Reporter):
        self.folder, self.recipe, self.reporter = folder, recipe, reporter
        state = read_json(folder / STATE_FILE) or {}
        self.inputs = input_marks(recipe, state.get("inputs"))
        self.inputs_before: dict[str, str] = state.get("inputs") or {}
        self.marks = stage_marks(recipe, self.inputs)
        self.names = [stage_name(index, stage) for index, stage in enumerate(recipe.stage)]
        self.started = time.monotonic()
        self.seconds_before: float = state.get("seconds") or 0.0
        self.energy = Energy.of(state.get("energy"))
        self.meter = EnergyMeter(recipe.energy)
        self.gates: list[GateOutcome] = []

    def run(self, *, restart: bool, reuse: bool) -> Run:
        if restart:
            self._clear()
        else:
            self._compare(reuse)
        remove_leftovers(self.folder)
        self._write_state(finished=False)
        self._remove_other_stages()
        try:
            results = self._stages()
        except BaseException:
            with contextlib.suppress(QuatrainError):
                self._write_state(finished=False)
                if self.gates:
                    self._write_report()
            raise
        done = Run(self.folder, self.recipe, results)
        self._finalize(done)
        return done

    @property
    def seconds(self) -> float:
        """Time spent on this run, including earlier calls that were interrupted."""
        return round(self.seconds_before + time.monotonic() - self.started, 1)

    def _clear(self) -> None:
        self._refuse_foreign_folder()
        self.seconds_before, self.energy = 0.0, Energy()
        for name in RUN_FILES:
            path = self.folder / name
            with disk_errors(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def _refuse_foreign_folder(self) -> None:
        """Raise InputError for a folder that holds only files which no run has written."""
        names = {
            path.name for path in self.folder.iterdir() if not (path.name.startswith(LOCK_NAME) or is_leftover(path))
        }
        if names and not names & {RECIPE_FILE, STATE_FILE}:
            raise InputError(
                f"{self.folder} holds files and is no run ({', '.join(sorted(names)[:3])}); give this run another "
                f"name, such as name={free_name(self.folder)}"
            )

    def _compare(self, reuse: bool) -> None:
        """Raise InputError if the folder holds results of a different recipe."""
        self._refuse_foreign_folder()
        path = self.folder / RECIPE_FILE
        if not path.exists():
            return
        differences = self._differences(path)
        if not differences:
            return
        finished, valid = self._finished_stages(), self._valid_stages()
        if not valid and (reuse or not (finished or self._has_checkpoints())):
            self._clear()
        elif not reuse:
            raise InputError(_changed_message(self.folder, finished, valid, len(differences)), differences)

    def _differences(self, path: Path) -> list[str]:
        try:
            before = loads(path.read_text(encoding="utf-8"))
        except (InputError, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[-1].strip(" -")
            return [f"{path} cannot be read as a recipe of this version: {reason}"]
        lines = changes(before, self.recipe)
        for key, mark in self.inputs.items():
            known = self.inputs_before.get(key)
            if known is not None and known != mark and not any(line.startswith(f"{key}:") for line in lines):
                lines.append(f"{key}: the content has changed since the run")
        if not lines and not self._same_version():
            lines.append("quatrain: the run was made by a version whose data or stages differ")
        return lines

    def _same_version(self) -> bool:
        """Whether the finished stages have the fingerprints of this version of the package, for an equal recipe."""
        results = [read_result(self.folder, name) for name in self.names]
        pairs = zip(results, self.marks, strict=True)
        return all(result is None or result.get("fingerprint") == mark.fingerprint for result, mark in pairs)

    def _finished_stages(self) -> list[str]:
        folder = self.folder / "stages"
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [name for name in names if read_result(self.folder, name)]

    def _valid_stages(self) -> list[str]:
        """Finished stages whose fingerprints match this recipe."""
        found = (
            (name, mark, read_result(self.folder, name)) for name, mark in zip(self.names, self.marks, strict=True)
        )
        return [name for name, mark, result in found if result and result.get("fingerprint") == mark.fingerprint]

    def _has_checkpoints(self) -> bool:
        return any(True for _ in (self.folder / "stages").glob("*/checkpoints/*"))

    def _write_state(self, *, finished: bool, **more: Any) -> None:
        write_text(self.folder / RECIPE_FILE, dumps(self.recipe))
        state = {"finished": finished, "stages": self.names, "inputs": self.inputs, "seconds": self.seconds}
        state |= {"energy": self.energy.as_dict(), "gates": [each.as_dict() for each in self.gates]}
        write_json(self.folder / STATE_FILE, state | more)

    def _remove_other_stages(self) -> None:
        folder = self.folder / "stages"
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir() and path.name not in self.names:
                with disk_errors(path):
                    shutil.rmtree(path)

    def _stages(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        shared: dict[str, Any] = {}
        redo = False
        for index, name in enumerate(self.names):
            result = read_result(self.folder, name)
            if redo or result is None or result.get("fingerprint") != self.marks[index].fingerprint:
                redo = redo or bool(spec_of(self.recipe.stage[index]).produces)
                context = stage_context(
                    self.recipe, self.folder, index, self.reporter, shared=shared, announce=partial(announce, index)
                )
                result = self._stage(context)
            else:
                self.reporter.stage(index + 1, len(self.names), name, "finished before")
            results.append(result)
            self._check_gates(name, outcomes(name, self.recipe.stage[index].gates, result))
        return results

    def _check_gates(self, name: str, found: list[GateOutcome]) -> None:
        self.gates += found
        for each in found:
            self.reporter.info(f"{name}: {'passed' if each.passed else 'NOT passed'}: {each.text}.")
        check(found)

    def _stage(self, context: StageContext) -> dict[str, Any]:
        index, name, mark = context.index, context.name, self.marks[context.index]
        resumed = prepare(context.stage_folder, mark)
        if not resumed:
            drop_metrics(context.metrics_path, name, after=-1)
        self.reporter.stage(index + 1, len(self.names), name, "resuming" if resumed else "")
        settings: Any = divided(self.recipe.stage[index], process_number()[1])
        reset_peak_memory()
        started = time.monotonic()
        self.meter.start()
        try:
            with failures_explained(name, context.stage_folder):
                result = spec_of(settings).run(settings, context)
        finally:
            spent = self.meter.stop()
            self.energy += spent
        if not isinstance(result, StageResult):
            raise TypeError(f"the {settings.kind} stage returned {type(result).__name__}, not a StageResult")
        values = result.as_dict()
        values.setdefault("seconds", round(time.monotonic() - started, 3))
        values.setdefault("peak_memory_bytes", peak_memory())
        values["energy"] = spent.as_dict()
        record = {"kind": settings.kind, "name": name, "fingerprint": mark.fingerprint, "finished": True} | values
        write_json(context.stage_folder / "result.json", _finite(record))
        return record

    def _finalize(self, done: Run) -> None:
        from quatrain.runs.summary import report_finished, write_card

        models = [path for name in self.names if (path := written_folder(self.folder / "stages" / name, "model"))]
        if models:
            with disk_errors(self.folder / "model"):
                link_folder(models[-1], self.folder / "model")
            write_text(self.folder / "model" / RECIPE_FILE, dumps(self.recipe))
            write_card(done, self.energy)
        self._write_state(finished=False, has_model=bool(models))  # The report reads the gates.
        self._write_report()
        self._write_state(finished=True, has_model=bool(models))
        report_finished(done, self.reporter, self.seconds, self.energy, self.gates)

    def _write_report(self) -> None:
        """Write the report; an error in it does not fail the run."""
        from quatrain.evaluation.report import write_report

        try:
            write_report(self.folder)
        except (QuatrainError, OSError) as error:
            self.reporter.warn(f"no report was written: {error}")
        except Exception as error:
            import logging

            logging.getLogger("quatrain").debug("the report failed", exc_info=True)
            self.reporter.warn(
                f"no report was written ({type(error).__name__}: {error}). This is a bug in quatrain; the run itself "
                "is complete. Run it again with --restart --debug to see where it happened, and report it with that."
            )


def _changed_message(folder: Path, finished: list[str], valid: list[str], count: int) -> str:
    redo = [name for name in finished if name not in valid]
    settings = "a setting" if count == 1 else f"{count} settings"
    other = f"name={free_name(folder)}"
    ways = [("--restart", "delete its results and start over"), (other, "keep it and start a new run")]
    if valid:
        again = f", redo {', '.join(redo)}" if redo else ""
        ways.insert(0, ("--reuse", f"keep {', '.join(valid)}, still valid{again}, and run the rest"))
    elif finished:
        ways[0] = ("--restart", "delete its results (no finished stage is still valid) and start over")
    width = max(len(flag) for flag, _ in ways)
    lines = [f"  {flag.ljust(width)}  {text}" for flag, text in ways]
    head = f"{folder} was made by a recipe that differs in {settings}. Nothing was touched; run again with one of"
    return "\n".join([head, *lines, "What changed:"])


def _finite(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
