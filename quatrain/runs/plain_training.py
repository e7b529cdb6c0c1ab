"""Trains a model of a stage whose examples are not token ids: progress, `metrics.jsonl`, checkpoints, resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quatrain.core.progress import MetricsLog
from quatrain.models.io import model_folder
from quatrain.planning.machine import choose_device
from quatrain.runs.learning import load_weights
from quatrain.runs.stage import StageContext, StageResult
from quatrain.training import checkpoints
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import ShuffledStream
from quatrain.training.trainer import Hooks, Trainer


def train_examples(
    model: Any,
    objective: Any,
    examples: Sequence[Any],
    train: TrainSettings,
    context: StageContext,
    *,
    size: int,
    validate: Callable[[Any], dict[str, float]] | None = None,
) -> StageResult:
    """Trains on shuffled examples of `size` units each, of which `train.batch_tokens` make a batch.

    The result has the counts and the loss of the training; writing the model is the stage's work.
    """
    rows = max(1, train.batch_tokens // size // train.accumulation)
    stream = ShuffledStream(examples, rows=rows, seed=context.seed)
    steps = train.steps or stream.steps(train.epochs or 1, train.accumulation)
    model.to(choose_device(train.device))
    resumed = checkpoints.newest_intact(context.checkpoints, context.reporter.warn)
    step = int(resumed.name.removeprefix("step-")) if resumed else 0
    save: Callable[[Path], None] = partial(model_folder.save, model)
    with (
        MetricsLog(context.metrics_path, context.name, resume_step=step) as log,
        context.reporter.task(context.name, total=steps) as task,
    ):
        hooks = Hooks(
            save=save,
            load=partial(load_weights, model),
            validate=validate,
            log=lambda entry: log.write(**entry),
            progress=task.update,
            warn=context.reporter.warn,
        )
        trained = Trainer(
            model, objective, stream, train, steps=steps, seed=context.seed, folder=context.checkpoints, hooks=hooks
        ).train()
    result = StageResult(tokens=trained.size, parameters=model.num_parameters())
    result.extra |= {"training_seconds": trained.seconds, "loss": trained.loss, "steps": trained.steps}
    return result
