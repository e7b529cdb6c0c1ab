"""Reads the files of a run, and tolerates missing, incomplete and damaged files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import parse_toml, read_bytes
from quatrain.evaluation.charts import finite
from quatrain.evaluation.report.suites import FOLDER as SUITES_FOLDER
from quatrain.evaluation.report.suites import stored_results
from quatrain.planning.energy import Energy

MOST_BYTES = 256 * 1024 * 1024
"""The largest result of a stage that is read."""

_NO_CURVE = frozenset({"stage", "step", "tokens", "seconds", "epoch", "time"})


@dataclass
class Curve:
    """A metric over the steps of one stage, in order, each step once; NaN for values that are not finite."""

    steps: list[float]
    values: list[float | None]

    @property
    def not_finite(self) -> int:
        """The number of values that are not finite."""
        return sum(finite(value) is None for value in self.values)


@dataclass
class StageRecord:
    """The record of a stage: the name of its folder, its kind, its result and its curves by metric."""

    name: str
    kind: str
    finished: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    training_samples: list[tuple[float, list[dict[str, Any]]]] = field(default_factory=list)
    """Samples of the model during training, by step."""
    alarms: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """Alarms of the watch, by step."""

    def number(self, key: str) -> float | None:
        """A finite number of the result, otherwise None."""
        return finite(self.result.get(key))

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """The finite metrics of each held-out set."""
        return self._metrics("scores")

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The finite metrics of the dumb baseline on each held-out set."""
        return self._metrics("baselines")

    def baseline_name(self, held_out: str) -> str:
        """What the dumb baseline of a held-out set answers."""
        baselines = self.result.get("baselines")
        baseline = baselines.get(held_out) if isinstance(baselines, dict) else None
        return str(baseline.get("name", "")) if isinstance(baseline, dict) else ""

    def _metrics(self, name: str) -> dict[str, dict[str, float]]:
        scores = self.result.get(name)
        sets = scores.items() if isinstance(scores, dict) else ()
        known = {
            str(name): {str(key): number for key, value in metrics.items() if (number := finite(value)) is not None}
            for name, metrics in sets
            if isinstance(metrics, dict)
        }
        return {name: metrics for name, metrics in known.items() if metrics}

    @property
    def kinds(self) -> dict[str, dict[str, dict[str, int]]]:
        """How many examples of each kind are `right`, and their `count`, by held-out set."""
        known = self.result.get("kinds")
        sets = known if isinstance(known, dict) else {}
        return {
            str(name): {
                str(kind): {"right": int(right), "count": int(count)}
                for kind, each in kinds.items()
                if isinstance(each, dict)
                and (right := finite(each.get("right"))) is not None
                and (count := finite(each.get("count"))) is not None
            }
            for name, kinds in sets.items()
            if isinstance(kinds, dict)
        }

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The samples that are dictionaries."""
        samples = self.result.get("samples")
        return [sample for sample in samples if isinstance(sample, dict)] if isinstance(samples, list) else []

    @property
    def confusion(self) -> tuple[list[str], list[list[int]]] | None:
        """Labels and the confusion matrix: true labels by row, predicted labels by column."""
        known = self.result.get("confusion")
        labels, counts = (known.get("labels"), known.get("counts")) if isinstance(known, dict) else (None, None)
        if not isinstance(labels, list) or not isinstance(counts, list) or len(counts) != len(labels):
            return None
        if not all(isinstance(row, list) and len(row) == len(labels) for row in counts):
            return None
        if not all(isinstance(count, int) and count >= 0 for row in counts for count in row):
            return None
        return [str(label) for label in labels], counts

    @property
    def energy(self) -> Energy:
        """The energy of the stage; none where it was not written."""
        return Energy.of(self.result.get("energy"))

    @property
    def notes(self) -> list[str]:
        notes = self.result.get("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []


@dataclass
class RunRecord:
    """The record of a run: its name, the planned stages and the stages that exist.

    `updated` is when the newest part was written; `damaged` names files that could not be read.
    """

    name: str
    description: str = ""
    seed: Any = None
    recipe: str = ""
    planned: list[str] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    updated: datetime | None = None
    damaged: list[str] = field(default_factory=list)
    folder: Path = Path()
    suites: list[dict[str, Any]] = field(default_factory=list)
    """Results of suites on the run's models."""
    gates: list[dict[str, Any]] = field(default_factory=list)
    """The gates of the stages that have run, beside what the stages reached."""

    @property
    def finished(self) -> bool:
        """Whether every planned stage has a result."""
        done = sum(stage.finished for stage in self.stages)
        return done > 0 and done >= len(self.planned) and all(stage.finished for stage in self.stages)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises InputError if the folder does not exist or has none of a run's files.
    """
    parts = [folder / "recipe.toml", folder / "metrics.jsonl", folder / "stages"]
    if not any(part.exists() for part in parts):
        raise InputError(
            f"{folder} is not a run: it has no recipe.toml, metrics.jsonl or stages/. Give the folder of a run."
        )
    run = RunRecord(name=folder.resolve().name, folder=folder)
    _read_recipe(run, parts[0])
    newest = _read_stages(run, parts[2])
    _read_metrics(run, parts[1])
    _read_gates(run, folder / "run.json")
    run.suites, damaged = stored_results(folder)
    run.damaged += [f"{SUITES_FOLDER}/{name}" for name in damaged]
    run.stages.sort(key=lambda stage: stage.name)
    if newest:
        run.updated = datetime.fromtimestamp(newest, tz=UTC)
    return run


def _read_recipe(run: RunRecord, path: Path) -> None:
    if not path.exists():
        return
    try:
        run.recipe = read_bytes(path).decode("utf-8", "replace")
        recipe = parse_toml(run.recipe, path.name)
    except InputError:
        run.damaged.append(path.name)
        return
    run.name = str(recipe.get("name") or run.name)
    run.description = str(recipe.get("description") or "")
    run.seed = recipe.get("seed")
    stages = recipe.get("stage")
    if isinstance(stages, list):
        run.planned = [str(stage.get("kind", "?")) for stage in stages if isinstance(stage, dict)]


def _read_gates(run: RunRecord, path: Path) -> None:
    """Read the gates of `run.json`; those of another form are left out."""
    try:
        gates = json.loads(read_bytes(path, MOST_BYTES)).get("gates")
    except (InputError, OSError, ValueError, RecursionError, AttributeError):
        return
    keys = ("stage", "name", "shown", "limit", "passed")
    run.gates = [gate for gate in gates or () if isinstance(gate, dict) and all(key in gate for key in keys)]


def _read_stages(run: RunRecord, folder: Path) -> float:
    """Read the folders of the stages. Returns the time of the newest result, or zero."""
    newest = 0.0
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not place.is_dir() or place.name.startswith("."):
            continue
        stage = StageRecord(place.name, place.name.partition("-")[2] or place.name)
        run.stages.append(stage)
        path = place / "result.json"
        if not path.exists():
            continue
        try:
            result = json.loads(read_bytes(path, MOST_BYTES))
            newest = max(newest, path.stat().st_mtime)
        except (InputError, OSError, ValueError, RecursionError):
            result = None
        if not isinstance(result, dict):
            run.damaged.append(f"stages/{place.name}/result.json")
            continue
        stage.result = result
        stage.kind = str(result.get("kind") or stage.kind)
        stage.finished = result.get("finished", True) is True
    return newest


def _read_metrics(run: RunRecord, path: Path) -> None:
    """Read the curves. Of a step written twice, because a run was resumed, the last entry counts."""
    columns: dict[str, dict[str, dict[float, float | None]]] = {}
    lists: dict[str, dict[str, dict[float, list[dict[str, Any]]]]] = {"samples": {}, "alarms": {}}
    bad_lines = 0
    if path.exists() and not path.is_file():  # a pipe would block
        run.damaged.append(path.name)
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                bad_lines += not _take(line, columns, lists) if line.strip() else 0
    except FileNotFoundError:
        return
    except OSError:
        run.damaged.append(path.name)
    if bad_lines > 1:  # the last line of a killed run may be truncated
        run.damaged.append(f"{path.name} ({bad_lines:,} lines)")
    by_name = {stage.name: stage for stage in run.stages}
    for name, metrics in columns.items():
        if name not in by_name:
            # A stage with several trainings logs each under its own name with that of the training.
            whole = next((stage for stage in run.stages if name.startswith(f"{stage.name}-")), None)
            finished = whole is not None and whole.finished
            by_name[name] = StageRecord(name, name.partition("-")[2] or name, finished=finished)
            run.stages.append(by_name[name])
        for key, values in metrics.items():
            steps = sorted(values)
            by_name[name].curves[key] = Curve(steps, [values[step] for step in steps])
        stage = by_name[name]
        stage.training_samples = sorted(lists["samples"].get(name, {}).items(), key=lambda item: item[0])
        alarms = sorted(lists["alarms"].get(name, {}).items(), key=lambda item: item[0])
        stage.alarms = [(step, alarm) for step, several in alarms for alarm in several]


def _take(
    line: str,
    columns: dict[str, dict[str, dict[float, float | None]]],
    lists: dict[str, dict[str, dict[float, list[dict[str, Any]]]]],
) -> bool:
    """Add one line of metrics to the columns. Returns False for a line that is not an entry."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
        return False
    step = finite(entry.get("step"))
    if step is None:
        return False
    metrics = columns.setdefault(entry["stage"], {})
    for key, by_stage in lists.items():
        if isinstance(logged := entry.get(key), list):
            by_stage.setdefault(entry["stage"], {})[step] = [each for each in logged if isinstance(each, dict)]
    for key, value in entry.items():
        if key not in _NO_CURVE and (value is None or isinstance(value, (int, float))) and not isinstance(value, bool):
            number = finite(value)
            metrics.setdefault(key, {})[step] = math.nan if number is None else number
    return True
