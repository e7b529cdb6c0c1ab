"""How long a step takes, by running some: the real model, optimizer, precision and batches, on this machine.

Operations over a rate say the time to a factor of two; a few steps of the trainer itself say it to some per cent.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any

import torch

from quatrain.models.stack import Model
from quatrain.planning.time import StepTime
from quatrain.training.objectives import Objective, collate
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import Stream, micro_seeds
from quatrain.training.trainer import Hooks, Trainer

WARM = 2
"""Steps that are not counted: the first ones choose kernels and make the optimizer's state."""
LEAST, MOST = 4, 100
"""Steps that are measured, at least and at most."""
SLOW = 20.0
"""Seconds of steps after which one measured step is enough."""


class _Enough(Exception):
    """Ends the trainer's loop when there is nothing more to learn from it."""


def measure(
    model: Model, objective: Objective, stream: Stream, settings: TrainSettings, *, seconds: float = 4.0
) -> StepTime:
    """Seconds of training by some steps of the trainer, over about so many seconds. The model's weights change.

    Raises QuatrainError where the steps fail.
    """
    parts = [1, 2] if settings.accumulation > 1 else [1]
    each = [_steps(model, objective, stream, settings, count, seconds / len(parts)) for count in parts]
    if len(each) == 1:
        per_token, per_step = statistics.median(took / tokens for took, tokens in each[0]), 0.0
    else:
        # A step of two micro-batches and one of one differ by a micro-batch without the optimizer.
        (one, tokens), (two, more) = ((_mean(steps, 0), _mean(steps, 1)) for steps in each)
        per_token = max(0.5 * one / tokens, (two - one) / max(1.0, more - tokens))
        per_step = max(0.0, one - per_token * tokens)
    return StepTime(per_token, per_step, _forward(model, objective, stream), measured=True)


def _mean(steps: list[tuple[float, int]], which: int) -> float:
    return statistics.median(float(step[which]) for step in steps)


def _steps(
    model: Model, objective: Objective, stream: Stream, settings: TrainSettings, accumulation: int, seconds: float
) -> list[tuple[float, int]]:
    """Seconds and tokens of steps of so many micro-batches."""
    found: list[tuple[float, int]] = []
    began = last = time.perf_counter()
    before = 0

    def progress(step: int, **metrics: float) -> None:
        nonlocal last, before
        now = time.perf_counter()
        if step > WARM or now - began > SLOW:
            found.append((now - last, trainer.tokens - before))
        if (len(found) >= LEAST and sum(took for took, _ in found) > seconds) or (found and now - began > SLOW):
            raise _Enough
        last, before = time.perf_counter(), trainer.tokens

    plain = {"accumulation": accumulation, "evaluate_every": 0, "patience": 0, "keep": "last", "spike": 0.0}
    trainer = Trainer(
        model,
        objective,
        stream,
        settings.model_copy(update=plain | {"learning_rate": 1e-6, "steps": WARM + MOST, "epochs": None}),
        steps=WARM + MOST,
        hooks=Hooks(progress=progress),
    )
    with contextlib.suppress(_Enough):
        trainer.train()
    return found


@torch.no_grad()
def _forward(model: Model, objective: Objective, stream: Stream) -> float:
    """Seconds for each token of a validation, which is a forward pass in full precision."""
    batch: Any = collate(objective, stream.next(), micro_seeds(stream, 0, 0)).to(model.device)
    model.eval()
    took = []
    for _ in range(2):
        start = time.perf_counter()
        objective.loss(model, batch)
        took.append(time.perf_counter() - start)
    return min(took) / max(1, batch.input_ids.numel())
