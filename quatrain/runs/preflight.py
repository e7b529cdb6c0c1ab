"""What a recipe's training will read, take and cost, before it costs anything: `quatrain check` and the lines before a
run.

Samples and counts come from the stage's own examples. Time and memory come from some real steps, taken in a process of
their own, so that what they leave behind is gone.
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

from quatrain.adapters.apply import trainable_report
from quatrain.core.atomic import write_text
from quatrain.core.errors import InputError
from quatrain.core.progress import Reporter, SilentReporter
from quatrain.planning.counts import state_bytes
from quatrain.planning.machine import available_memory, choose_device, free_disk
from quatrain.planning.room import check_step
from quatrain.runs.distributed import context_of, trains_together
from quatrain.runs.learning import TrainingJob, adapt, check_learns_whole, fresh_model
from quatrain.runs.recipe import Recipe, dumps
from quatrain.runs.stage import StageContext, stage_function, stage_name
from quatrain.training.memory import tensor_bytes
from quatrain.training.preflight import DataReport, look

CHECKPOINTS = 3
"""Checkpoints that are on the disk at once, at most: two that are kept and the one that is being written."""


@dataclass
class StagePreflight:
    """What one stage that trains will be."""

    stage: str
    objective: str
    found: DataReport
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
    def peak(self) -> int | None:
        """Bytes at the peak of memory."""
        return self.memory.get("peak")


@dataclass
class Preflight:
    """What a recipe will be: its stages that train, and what cannot work in any."""

    stages: list[StagePreflight]
    seconds: float | None
    disk: int
    free: int | None
    skipped: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All of them, each with its stage."""
        found = [f"{stage.stage}: {each}" for stage in self.stages for each in [*stage.problems, *stage.found.problems]]
        if self.free is not None and self.disk > self.free:
            found.append(f"the disk: {self.disk:,} bytes are needed and {self.free:,} are free; make room on it")
        return found

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"problems": self.problems}


def preflight(
    recipe: Recipe, *, folder: Path | None = None, measure: bool = True, reporter: Reporter | None = None
) -> Preflight:
    """Sets up every stage of a recipe that trains, as far as it can be before the stages in front of it have run.

    `folder` is where the run will be, whose disk is looked at. `measure` takes some steps of each stage.
    """
    reporter = reporter or SilentReporter()
    stages, skipped = [], []
    with tempfile.TemporaryDirectory(prefix="quatrain-check-") as place:
        work = Path(place) / recipe.name
        work.mkdir()
        write_text(work / "recipe.toml", dumps(recipe))
        for index, settings in enumerate(recipe.stage):
            name = stage_name(index, settings)
            if settings.kind == "tokenizer":
                _make_tokenizer(recipe, work, index, reporter)
            elif trains_together(settings):
                stages.append(_stage(recipe, work, index, measure, reporter))
            elif settings.kind == "dpo":
                skipped.append(f"{name}: learns from what the model says then, and is not looked at here")
            (work / "stages" / name).mkdir(parents=True, exist_ok=True)
            write_text(work / "stages" / name / "result.json", "{}")
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    seconds = sum(known) if len(known) == len(stages) and known else None
    home = folder or Path.cwd()
    return Preflight(stages, seconds, sum(stage.disk for stage in stages), free_disk(_existing(home)), skipped)


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.resolve().parents) if each.exists())


def _make_tokenizer(recipe: Recipe, work: Path, index: int, reporter: Reporter) -> None:
    context = context_of(recipe, work, index)
    context.reporter = reporter
    context.stage_folder.mkdir(parents=True, exist_ok=True)
    stage_function("tokenizer")(recipe.stage[index], context)


def learning_of(recipe: Recipe, work: Path, index: int, reporter: Reporter) -> tuple[TrainingJob, StageContext]:
    """What a stage learns. Where no stage has made a model yet, fresh weights of the recipe's shape stand in."""
    from quatrain.runs.material import model_folder_of, tokenizer_of
    from quatrain.runs.stages import finetune, pretrain

    context = context_of(recipe, work, index)
    context.reporter = reporter
    context.stage_folder.mkdir(parents=True, exist_ok=True)
    settings: Any = recipe.stage[index]
    if settings.kind == "pretrain":
        return pretrain.setup(settings, context), context
    model = None
    if settings.objective == "chat" and model_folder_of(context) is None:
        model = fresh_model(context, tokenizer_of(context))
    return finetune.setup(settings, context, model), context


def _stage(recipe: Recipe, work: Path, index: int, measure: bool, reporter: Reporter) -> StagePreflight:
    settings: Any = recipe.stage[index]
    learning, context = learning_of(recipe, work, index, reporter)
    found = look_at(learning, chats=settings.kind == "finetune" and settings.objective == "chat")
    if learning.adapter is not None:
        adapt(learning.model, learning.adapter, learning.tokenizer, seed=context.seed, tasks=learning.tasks)
    else:
        check_learns_whole(learning.model, context.name)
    trained, total, _ = trainable_report(learning.model)
    states = _states(learning)
    result = StagePreflight(
        context.name,
        settings.objective,
        found,
        [*learning.notes, *_without_effect(learning)],
        (learning.tokenizer.vocab_size, learning.model.config.vocab_size),
        trained,
        total,
        learning.steps,
        disk=4 * (total + CHECKPOINTS * (total if trained == total else trained)) + CHECKPOINTS * states,
    )
    if problem := _too_large(learning):
        result.problems.append(problem)
    elif measure and not found.problems:
        del learning
        with reporter.task(f"{context.name}: measuring"):
            _measure(work, index, result)
    return result


def _too_large(learning: TrainingJob) -> str | None:
    """What of a training cannot be held, reckoned before it begins; None where nothing is known to be too much."""
    trained = sum(each.numel() for each in learning.model.parameters() if each.requires_grad)
    held = tensor_bytes([*learning.model.parameters(), *learning.model.buffers()]) + 4 * trained
    device = choose_device(learning.settings.device)
    if not (learning.settings.paged_optimizer and device.type == "cuda"):
        held += _states(learning)
    free = available_memory(device)
    if free is not None and held > free:
        return (
            f"weights, gradients and the optimizer's state take {held:,} bytes, and {free:,} are free; make the model "
            "smaller, or train an adapter"
        )
    tokens = learning.settings.batch_tokens // learning.settings.accumulation
    if learning.examples is not None:
        tokens = min(tokens, sum(map(len, learning.examples)))
    try:
        check_step(learning.model.config, tokens, device)
    except InputError as error:
        return error.message
    return None


def _without_effect(learning: TrainingJob) -> Iterator[str]:
    """A warm-up that is longer than the training, and choices by validations where there are none."""
    wanted = learning.settings
    if learning.validate is None and (wanted.keep == "best" or wanted.patience):
        asked = 'keep = "best"' if wanted.keep == "best" else f"patience = {wanted.patience}"
        yield (
            f"train: {asked} goes by validations, and no data is held out for them (data.validation, data.dev): the "
            "last weights are kept."
        )
    if learning.settings.warmup_steps >= learning.steps > 1:
        yield (
            f"train.warmup_steps: {learning.settings.warmup_steps:,} of {learning.steps:,} steps; "
            f"the learning rate never reaches {learning.settings.learning_rate:g}. Lower it, or train for longer."
        )


def _states(learning: TrainingJob) -> int:
    """Bytes of the optimizer's states; of Muon's as if AdamW had them, which is the most."""
    kind = "adamw8bit" if learning.settings.optimizer == "adamw8bit" else "adamw"
    return sum(state_bytes(each.numel(), kind) for each in learning.model.parameters() if each.requires_grad)


def look_at(learning: TrainingJob, *, chats: bool) -> DataReport:
    """The samples and counts of a stage's examples."""
    stream = learning.stream if learning.examples is None else None
    return look(
        learning.objective,
        learning.tokenizer,
        learning.model.config,
        examples=learning.examples,
        stream=stream,
        chats=chats,
    )


def _measure(work: Path, index: int, result: StagePreflight) -> None:
    """Takes some steps in another process, and works out from them what all of them take."""
    command = [sys.executable, "-m", "quatrain.runs.trial", str(work), str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode < 0:
        result.problems.append(
            "some steps that were tried were ended by the system, most likely for want of memory; make "
            "train.batch_tokens smaller, or the model"
        )
        return
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        result.problems.append(f"some steps that were tried failed: {reason}")
        return
    told = json.loads(lines[-1])
    if "error" in told:
        result.problems.append(told["error"])
        return
    result.seconds, result.memory = told["seconds"], told["memory"]
    result.tokens_per_second, result.precision = told["tokens_per_second"], told["precision"]


def before_run(learning: TrainingJob, context: StageContext, settings: Any) -> None:
    """The short form, before a stage of a run trains. Raises InputError for what cannot work."""
    if settings.kind not in ("pretrain", "finetune") or not context.is_main:
        return
    chats = settings.kind == "finetune" and settings.objective == "chat"
    if learning.adapter is None and (problem := _too_large(learning)):
        raise InputError(f"{context.name}: {problem}")
    for warning in _without_effect(learning):
        context.reporter.warn(warning)
    if learning.examples is None:
        return
    found = look_at(learning, chats=chats)
    for warning in found.warnings:
        context.reporter.warn(warning)
    if found.problems:
        raise InputError(f"{context.name} cannot learn from this data; `quatrain check` shows more:", found.problems)


def share(part: float, whole: float) -> str:
    """A share as a person reads it."""
    return f"{part / whole:.1%}" if whole and math.isfinite(part) else "none"


def rows_for_table(stage: StagePreflight) -> Iterator[tuple[str, str]]:
    """What a person is told of a stage, line by line."""
    from quatrain.core.wording import format_bytes, format_duration

    found = stage.found
    if found.examples is not None:
        yield "examples", f"{found.examples:,}"
        yield "tokens a row", ", ".join(f"{name} {value:,}" for name, value in found.lengths.items())
    if found.learned:
        yield "learned tokens", f"{share(found.learned, found.tokens)} of those looked at"
    if found.labels:
        shown = [f"{name} {count:,}" for name, count in list(found.labels.items())[:8]]
        yield "labels", ", ".join(shown) + (", …" if len(found.labels) > 8 else "")
    for name, text in found.special.items():
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
        told = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        yield "peak memory", f"{format_bytes(stage.peak)}: {told}, the rest of the process {format_bytes(max(0, rest))}"
    yield "disk", f"{format_bytes(stage.disk)} at most while it trains"
    yield from (("note", note) for note in stage.notes)
