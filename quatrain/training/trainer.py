"""One loop for every objective: accumulation, precision, schedule, clipping, logging, checkpoints.

The objective returns the sum of its loss and its weight; sums of all micro-batches are added up and divided once,
so that accumulation in 8, 4 or 1 parts gives one and the same step. A run that is killed and started again goes on
bit for bit: weights, optimizer, schedule, the data's cursor and every generator come from the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.adaptation.token_rows import WEIGHT, learned_rows
from quatrain.errors import QuatrainError
from quatrain.models.stack import Model
from quatrain.training import checkpoints
from quatrain.training.objectives import Objective
from quatrain.training.optimizers import (
    load_optimizer_tensors,
    make_optimizers,
    optimizer_tensors,
    set_learning_rate,
)
from quatrain.training.precision import DTYPES, Precision, dtype_name, working_dtype
from quatrain.training.schedules import share
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import Stream

CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints where `checkpoint_every` leaves it to time."""


@dataclass
class Hooks:
    """What surrounds the loop. Each has a default that does nothing.

    `save(folder)` and `load(folder)` write and read the weights of a checkpoint; `validate(model)` returns metrics
    such as `validation_loss`; `log(entry)` takes a dictionary every `log_every` steps; `progress(step, **metrics)`
    runs after each step; `resumed(step)` says where a resumed run goes on; `warn(text)` is for the reader.
    """

    save: Callable[[Path], None] | None = None
    load: Callable[[Path], None] | None = None
    validate: Callable[[Model], dict[str, float]] | None = None
    log: Callable[[dict[str, Any]], None] = lambda entry: None
    progress: Callable[..., None] = lambda step, **metrics: None
    resumed: Callable[[int], None] = lambda step: None
    warn: Callable[[str], None] = lambda text: None


@dataclass
class TrainResult:
    """What a training run did. `seconds` is the time of its steps alone, over all its parts if it was resumed."""

    steps: int
    tokens: int
    seconds: float
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    precision: str = "float32"


class Trainer:
    """Trains a model's parameters that require a gradient, by an objective, on a stream, for a number of steps.

    `folder` is where checkpoints go; None keeps none. `seed` seeds dropout. Learned positions are as the objective's
    weight says; the learning rate is that of `settings.schedule` over `steps`.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        stream: Stream,
        settings: TrainSettings,
        *,
        steps: int,
        seed: int = 0,
        folder: Path | None = None,
        hooks: Hooks | None = None,
    ):
        self.model, self.objective, self.stream, self.settings = model, objective, stream, settings
        self.steps, self.seed, self.folder, self.hooks = steps, seed, folder, hooks or Hooks()
        self.device = model.device
        self.dtype = working_dtype(settings, self.device)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._recent: deque[float] = deque(maxlen=50)

    def train(self) -> TrainResult:
        """Runs to the last step, from the newest whole checkpoint if there is one. Leaves the model in evaluation mode.

        Raises QuatrainError when the loss is no number any more; the last checkpoint stays.
        """
        state, tensors = self._find_checkpoint()
        self.weights = Precision(self.model, self.dtype)
        # Decay would move the embedding's frozen rows.
        undecayed = {WEIGHT} if learned_rows(self.model) else set()
        try:
            self.optimizers = make_optimizers(
                self.weights.masters, self.settings, dtype=self.dtype, undecayed=undecayed
            )
            if state is not None:
                load_optimizer_tensors(self.weights.masters, self.optimizers, tensors)
            metrics = self._loop()
        finally:
            self.weights.close()
            self.model.eval()
        return TrainResult(self.steps, self.tokens, self.seconds, self._mean_loss(), metrics, dtype_name(self.dtype))

    def _loop(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        saved_at = time.monotonic()
        self.model.train()
        while self.step < self.steps:
            self._one_step()
            last = self.step == self.steps
            every = self.settings.evaluate_every
            if self.hooks.validate is not None and (last or (every and self.step % every == 0)):
                metrics = self._validate()
            if self._checkpoint_due(time.monotonic() - saved_at) and not last:
                self.save_checkpoint()
                saved_at = time.monotonic()
        return metrics

    def _one_step(self) -> None:
        started = time.perf_counter()
        if self.settings.dropout:
            torch.manual_seed(hash((self.seed, self.step)))
        rate = self.settings.learning_rate * share(
            self.step,
            steps=self.steps,
            schedule=self.settings.schedule,
            warmup=self.settings.warmup,
            minimum=self.settings.min_learning_rate,
            decay=self.settings.decay,
        )
        loss, norm, tokens, metrics = self._gradients()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise QuatrainError(
                f"Step {self.step + 1}: the loss is {loss} and the gradient's norm {norm}. Nothing after this can be "
                f"right. Lower train.learning_rate (now {self.settings.learning_rate}), lengthen train.warmup, or set "
                'train.precision = "float32"; the next run goes on from the last checkpoint.'
            )
        set_learning_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
        self.weights.publish()
        self.step += 1
        self.tokens += tokens
        self.seconds += time.perf_counter() - started
        self._recent.append(loss)
        speed = self.tokens / self.seconds
        self.hooks.progress(self.step, loss=self._mean_loss(), tokens_per_second=speed)
        if self.step % self.settings.log_every == 0 or self.step in (1, self.steps):
            self.hooks.log(
                {
                    "step": self.step,
                    "loss": loss,
                    **metrics,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "tokens": self.tokens,
                    "tokens_per_second": round(speed, 1),
                    "seconds": round(self.seconds, 3),
                }
            )

    def _gradients(self) -> tuple[float, float, int, dict[str, float]]:
        """Leaves the clipped gradient of the mean loss; returns loss, norm before clipping, tokens read and metrics.

        Metrics are summed and divided as the loss is.
        """
        self.weights.clear()
        total: Tensor | None = None
        weight = tokens = 0
        sums: dict[str, float | Tensor] = {}
        for _ in range(self.settings.accumulation):
            batch = self.objective.collate(self.stream.next()).to(self.device)
            loss, count, metrics = self.objective.loss(self.model, batch)
            loss.backward()
            self.weights.gather()
            total = loss.detach() if total is None else total + loss.detach()
            weight += count
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            tokens += batch.input_ids.numel()
        weight = max(1, weight)
        gradients = [master.grad for master in self.weights.masters.values() if master.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item() / weight
        clip = self.settings.clip
        factor = min(1.0, clip / norm) if clip and norm > 0 else 1.0
        torch._foreach_mul_(gradients, factor / weight)
        means = {name: float(value) / weight for name, value in sums.items()}
        return total.item() / weight, norm, tokens, means  # type: ignore[union-attr]

    def _mean_loss(self) -> float:
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    def _validate(self) -> dict[str, float]:
        self.model.eval()
        with self.weights.full(), torch.no_grad():
            metrics = self.hooks.validate(self.model)  # type: ignore[misc]
        self.model.train()
        self.hooks.log({"step": self.step, **metrics})
        return metrics

    def _checkpoint_due(self, seconds: float) -> bool:
        if self.folder is None or self.hooks.save is None:
            return False
        every = self.settings.checkpoint_every
        return self.step % every == 0 if every else seconds > CHECKPOINT_SECONDS

    def save_checkpoint(self) -> Path:
        """Writes a checkpoint of this moment. Raises QuatrainError on a full disk, the one before stays whole."""
        if self.folder is None or self.hooks.save is None:
            raise ValueError("a checkpoint needs a folder and a hook that saves the weights")
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "stream": self.stream.state(),
            "seed": self.seed,
            "precision": dtype_name(self.dtype),
            "recent": list(self._recent),
            "steps": self.steps,
        }
        with self.weights.full():
            return checkpoints.write(
                self.folder,
                self.step,
                weights=self.hooks.save,
                state=state,
                tensors=optimizer_tensors(self.weights.masters, self.optimizers),
            )

    def _find_checkpoint(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """Restores weights and counters from the newest whole checkpoint; returns its state and optimizer tensors."""
        if self.folder is None or self.hooks.load is None:
            return None, {}
        checkpoint = checkpoints.newest_whole(self.folder, self.hooks.warn)
        if checkpoint is None:
            return None, {}
        state, tensors = checkpoints.read_state(checkpoint)
        self.hooks.load(checkpoint)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.dtype = DTYPES[state["precision"]]
        self._recent.extend(state["recent"])
        self.stream.load_state(state["stream"])
        self.hooks.resumed(self.step)
        return state, tensors
