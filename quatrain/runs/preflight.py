"""`quatrain check`: what a recipe's training will read and cost, before it runs.

Samples and counts come from the stage's own examples. Time and memory come from some real steps, taken in a process of
their own, so that its memory is released.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quatrain.adapters.apply import count_trainable_parameters
from quatrain.core.atomic import write_text
from quatrain.core.progress import Reporter, SilentReporter
from quatrain.planning.block_widths import width_notes
from quatrain.planning.machine import free_disk
from quatrain.runs.contexts import stage_context
from quatrain.runs.job import TrainingJob
from quatrain.runs.job_checks import doubtful_settings, inspect_examples, memory_problem, optimizer_bytes
from quatrain.runs.learning import adapt, check_learns_whole
from quatrain.runs.recipe import Recipe, dumps
from quatrain.runs.stage import StageContext
from quatrain.runs.stages import child_environment, spec_of
from quatrain.training.preflight import DataReport

CHECKPOINTS = 3
"""Most checkpoints on disk at once: two that are kept and the one that is being written."""


@dataclass
class StagePreflight:
    """What one stage that trains will read and cost."""

    stage: str
    objective: str
    data: DataReport
    notes: list[str]
    vocabulary: tuple[int, int]
    trained: int
    parameters: int
    steps: int
    disk: int
    seconds: float | None = None
    memory: dict[str, int] = field(default_factory=dict)
    tokens_per_second: float | None = None
    precision: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def all_problems(self) -> list[str]:
        """The stage's problems and those of its data."""
        return [*self.problems, *self.data.problems]

    @property
    def peak(self) -> int | None:
        """Peak memory in bytes."""
        return self.memory.get("peak")


@dataclass
class Preflight:
    """What a recipe will read and cost: its stages that train, those that were skipped, and all problems."""

    stages: list[StagePreflight]
    seconds: float | None
    disk: int
    free: int | None
    skipped: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All problems, each with its stage."""
        problems = [f"{stage.stage}: {problem}" for stage in self.stages for problem in stage.all_problems]
        if self.free is not None and self.disk > self.free:
            problems.append(f"the disk: {self.disk:,} bytes are needed and {self.free:,} are free; make room on it")
        return problems

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"problems": self.problems}


def preflight(
    recipe: Recipe, *, folder: Path | None = None, measure: bool = True, reporter: Reporter | None = None
) -> Preflight:
    """Prepares every stage of a recipe, as far as this is possible before the stages in front of it have run.

    `folder` is where the run will be; the free space of its disk is reported. With `measure` some steps of each stage
    that trains are taken.
    """
    reporter = reporter or SilentReporter()
    stages, skipped = [], []
    shared: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="quatrain-check-") as place:
        work = Path(place) / recipe.name
        work.mkdir()
        write_text(work / "recipe.toml", dumps(recipe))
        for index, settings in enumerate(recipe.stage):
            context = check_context(recipe, work, index, reporter, shared)
            prepare = spec_of(settings).prepare
            job = prepare(settings, context) if prepare is not None else None
            if isinstance(job, str):
                skipped.append(f"{context.name}: {job}")
            elif job is not None:
                stage = _stage(job, context)
                stages.append(stage)
                del job
                if measure and not stage.all_problems:
                    with reporter.task(f"{context.name}: measuring"):
                        _measure(work, index, stage)
            write_text(context.stage_folder / "result.json", "{}")
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    seconds = sum(known) if len(known) == len(stages) and known else None
    home = folder or Path.cwd()
    return Preflight(stages, seconds, sum(stage.disk for stage in stages), free_disk(_existing(home)), skipped)


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.resolve().parents) if each.exists())


def check_context(recipe: Recipe, work: Path, index: int, reporter: Reporter, shared: dict[str, Any]) -> StageContext:
    """The context that a stage is prepared in. Where no stage has made a model yet, fresh weights stand in.

    The stages share what they open, such as their data, in `shared`.
    """
    context = stage_context(recipe, work, index, reporter, fresh_model=True, shared=shared)
    context.stage_folder.mkdir(parents=True, exist_ok=True)
    return context


def _stage(job: TrainingJob, context: StageContext) -> StagePreflight:
    """What a job will read and cost, as far as that is known without a step."""
    data = inspect_examples(job)
    if job.adapter is not None:
        adapt(job.model, job.adapter, job.tokenizer, seed=context.seed, adapters=job.adapters)
    else:
        check_learns_whole(job.model, context.name)
    trained, total, _ = count_trainable_parameters(job.model)
    states = optimizer_bytes(job)
    settings = context.recipe.stage[context.index]
    result = StagePreflight(
        context.name,
        getattr(settings, "objective", settings.kind),
        data,
        [*job.notes, *doubtful_settings(job), *(width_notes(job.model.config) if job.model.is_planned else [])],
        (job.tokenizer.vocab_size, job.model.config.vocab_size),
        trained,
        total,
        job.steps,
        disk=4 * (total + CHECKPOINTS * (total if trained == total else trained)) + CHECKPOINTS * states,
    )
    if problem := memory_problem(job):
        result.problems.append(problem)
    return result


def _measure(work: Path, index: int, result: StagePreflight) -> None:
    """Measures some steps in another process, and extrapolates the time of all steps."""
    command = [sys.executable, "-m", "quatrain.runs.trial", str(work), str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    lines = done.stdout.strip().splitlines()
    if done.returncode < 0:
        result.problems.append(
            "the system ended the measured steps, most likely because memory ran out; make train.batch_tokens or the "
            "model smaller"
        )
        return
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        result.problems.append(f"the measured steps failed: {reason}")
        return
    measured = json.loads(lines[-1])
    if "error" in measured:
        result.problems.append(measured["error"])
        return
    result.seconds, result.memory = measured["seconds"], measured["memory"]
    result.tokens_per_second, result.precision = measured["tokens_per_second"], measured["precision"]


def share(part: float, whole: float) -> str:
    """A share as a percentage."""
    return f"{part / whole:.1%}" if whole and math.isfinite(part) else "none"


def rows_for_table(stage: StagePreflight) -> Iterator[tuple[str, str]]:
    """The rows of the table that describes a stage."""
    from quatrain.core.wording import format_bytes, format_duration

    data = stage.data
    if data.examples is not None:
        yield "examples", f"{data.examples:,}"
        yield "tokens a row", ", ".join(f"{name} {value:,}" for name, value in data.lengths.items())
    if data.learned:
        yield "learned tokens", f"{share(data.learned, data.tokens)} of those examined"
    if data.labels:
        shown = [f"{name} {count:,}" for name, count in list(data.labels.items())[:8]]
        yield "labels", ", ".join(shown) + (", …" if len(data.labels) > 8 else "")
    for name, text in data.special.items():
        yield f"special {name}", text
    yield "vocabulary", f"{stage.vocabulary[0]:,} tokens, {stage.vocabulary[1]:,} rows of the embedding"
    yield "parameters", f"{stage.trained:,} of {stage.parameters:,} train ({share(stage.trained, stage.parameters)})"
    yield "steps", f"{stage.steps:,}"
    if stage.seconds is not None:
        speed = f", {stage.tokens_per_second:,.0f} tokens/s in {stage.precision}" if stage.tokens_per_second else ""
        yield "time", f"about {format_duration(stage.seconds)}{speed}"
    if stage.peak is not None:
        parts = {name: size for name, size in stage.memory.items() if name != "peak"}
        rest = stage.peak - sum(parts.values())
        by_part = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        other = format_bytes(max(0, rest))
        yield "peak memory", f"{format_bytes(stage.peak)}: {by_part}, the rest of the process {other}"
    yield "disk", f"{format_bytes(stage.disk)} at most while it trains"
    yield from (("note", note) for note in stage.notes)
