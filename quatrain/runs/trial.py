"""Measures a few steps of a stage's training, as a program of its own: its peak memory is then that of the stage alone.

    python -m quatrain.runs.trial FOLDER INDEX

FOLDER is a folder that `quatrain.runs.preflight` has prepared. The last line of output is a JSON object with the
estimated seconds of the whole training, peak memory by part and tokens per second, or with "error".
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quatrain.core.errors import QuatrainError
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import loads

WARMUP_STEPS, MIN_STEPS, MIN_SECONDS, MAX_SECONDS = 2, 4, 6.0, 60.0
"""Steps before the timing starts; the fewest steps and seconds that are timed; the seconds after which one timed step
is enough."""


def trial(folder: Path, index: int) -> dict[str, Any]:
    """Measures a few steps, one checkpoint and one validation of a stage."""
    from quatrain.core.process_memory import reset_peak_memory
    from quatrain.planning.machine import choose_device
    from quatrain.runs.learning import attach
    from quatrain.runs.preflight import check_context
    from quatrain.runs.stages import spec_of
    from quatrain.training import memory
    from quatrain.training.trainer import CHECKPOINT_SECONDS, Hooks, Trainer

    recipe = loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    context = check_context(recipe, folder, index, SilentReporter(), {})
    job = spec_of(recipe.stage[index]).training_job(recipe.stage[index], context)
    save, load = attach(job, context)
    settings = job.settings
    timings: list[tuple[float, int]] = []
    model = job.trained.to(choose_device(settings.device))
    with tempfile.TemporaryDirectory(prefix="quatrain-trial-") as place:
        trainer = Trainer(
            model,
            job.objective,
            job.stream,
            settings.model_copy(update={"evaluate_every": 0, "patience": 0, "keep": "last", "checkpoint_every": 10**9}),
            steps=job.steps,
            seed=context.seed,
            folder=Path(place),
            hooks=Hooks(save=save, load=load),
        )
        checkpoint_seconds = 0.0
        # A stream that samples what it trains on does so every so many steps: whole phases are timed.
        phase: int = getattr(job.stream, "steps_per_phase", 1)
        warmup = WARMUP_STEPS if phase == 1 else 0
        reset_peak_memory()
        began = time.perf_counter()
        with trainer.ready():
            while trainer.steps_done < job.steps:
                start, before = time.perf_counter(), trainer.size
                trainer.step()
                now = time.perf_counter()
                if trainer.steps_done > warmup or now - began > MAX_SECONDS or job.steps <= WARMUP_STEPS:
                    timings.append((now - start, trainer.size - before))
                counted = sum(seconds for seconds, _ in timings)
                enough = len(timings) >= MIN_STEPS and counted > MIN_SECONDS and len(timings) % phase == 0
                if timings and (enough or now - began > MAX_SECONDS):
                    break
                if trainer.steps_done == WARMUP_STEPS + 1 and _writes_checkpoint(job, timings):
                    start = time.perf_counter()
                    trainer.save_checkpoint()
                    checkpoint_seconds = time.perf_counter() - start
        validation_seconds = 0.0
        if job.validate is not None:
            start = time.perf_counter()
            job.validate(job.model)
            validation_seconds = time.perf_counter() - start
    trainer.memory["peak"] = memory.peak(job.model.device)
    per_step = _seconds_per_step(job, timings)
    seconds = job.steps * per_step
    validations = job.steps // settings.evaluate_every if settings.evaluate_every else 0
    validations += bool(job.validate) and (not settings.evaluate_every or job.steps % settings.evaluate_every > 0)
    checkpoints = job.steps / settings.checkpoint_every if settings.checkpoint_every else seconds / CHECKPOINT_SECONDS
    tokens = sum(count for _, count in timings)
    return {
        "seconds": seconds + validations * validation_seconds + int(checkpoints) * checkpoint_seconds,
        "seconds_per_step": per_step,
        "tokens_per_second": tokens / sum(seconds for seconds, _ in timings),
        "precision": str(trainer.dtype).removeprefix("torch."),
        "memory": trainer.memory,
    }


def _writes_checkpoint(job: Any, timings: list[tuple[float, int]]) -> bool:
    """Whether the run will write a checkpoint before its end."""
    from quatrain.training.trainer import CHECKPOINT_SECONDS

    every = job.settings.checkpoint_every
    if every:
        return every < job.steps
    return job.steps * statistics.mean(seconds for seconds, _ in timings) > CHECKPOINT_SECONDS


def _seconds_per_step(job: Any, timings: list[tuple[float, int]]) -> float:
    """Seconds per step: the median time per token, times the mean tokens of a step; the mean, where a step may also
    sample what the next ones train on.
    """
    if hasattr(job.stream, "steps_per_phase"):
        return statistics.mean(seconds for seconds, _ in timings)
    per_token = statistics.median(seconds / max(1, tokens) for seconds, tokens in timings)
    stream, parts = job.stream, job.settings.accumulation
    if not hasattr(stream, "lengths"):
        return per_token * statistics.mean(tokens for _, tokens in timings)
    batches = stream.plan(0)
    mean = sum(len(batch) * int(stream.lengths[batch].max()) for batch in batches) / len(batches)
    measured = statistics.mean(tokens for _, tokens in timings)
    return per_token * max(mean * parts, 0.2 * measured)


def main() -> None:
    """Runs the program."""
    try:
        result = trial(Path(sys.argv[1]), int(sys.argv[2]))
    except QuatrainError as error:
        result = {"error": " ".join([str(error.message), *error.problems])}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
