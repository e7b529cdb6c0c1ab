"""What the stages that train have in common: the trainer with its hooks, checkpoints, metrics, and the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quatrain.adaptation.lora import trainable_report
from quatrain.models.stack import Model
from quatrain.planning.counts import flops_per_token
from quatrain.progress import MetricsLog
from quatrain.stages.base import Context, StageResult
from quatrain.training import checkpoints
from quatrain.training.objectives import Objective
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import Stream
from quatrain.training.trainer import Hooks, Trainer, TrainResult


def train(
    context: Context,
    model: Model,
    objective: Objective,
    stream: Stream,
    settings: TrainSettings,
    *,
    steps: int,
    sequence: int,
    save: Callable[[Path], None],
    load: Callable[[Path], None],
    validate: Callable[[Model], dict[str, float]] | None = None,
) -> tuple[TrainResult, StageResult]:
    """Trains with progress, `metrics.jsonl` and checkpoints, from the newest whole checkpoint if there is one.

    `sequence` is the usual length of a row in tokens, for the count of operations. `save` and `load` write and read
    the weights of a checkpoint.
    """
    newest = checkpoints.newest_whole(context.checkpoints, context.reporter.warn)
    resume_step = int(newest.name.removeprefix("step-")) if newest else 0
    with (
        MetricsLog(context.metrics_path, context.name, resume_step=resume_step) as log,
        context.reporter.task(context.name, total=steps) as task,
    ):
        hooks = Hooks(
            save=save,
            load=load,
            validate=validate,
            log=lambda entry: log.write(**entry),
            progress=task.update,
            resumed=lambda step: context.reporter.info(f"{context.name} goes on from step {step:,} of {steps:,}."),
            warn=context.reporter.warn,
        )
        trainer = Trainer(
            model, objective, stream, settings, steps=steps, seed=context.seed, folder=context.checkpoints, hooks=hooks
        )
        result = trainer.train()
    trainable, _, _ = trainable_report(model)
    flops = flops_per_token(model.config, sequence, training=True) * result.tokens
    return result, StageResult(
        tokens=result.tokens,
        flops=flops,
        parameters=model.num_parameters(),
        trainable_parameters=trainable,
        extra={
            "training_seconds": result.seconds,
            "loss": result.loss,
            "precision": result.precision,
            "steps": result.steps,
        },
    )
