"""Gradients of one step: reads micro-batches, runs forward and backward passes, sums and divides once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError, QuatrainError
from quatrain.data.batches import Batch
from quatrain.training import memory
from quatrain.training.acceleration import Compiled
from quatrain.training.distributed import Losses, ParallelStrategy, device_of
from quatrain.training.guards import GradientWatch
from quatrain.training.objectives import Objective, collate
from quatrain.training.objectives.metrics import Metric, MetricSums
from quatrain.training.optimizers import dense_part
from quatrain.training.precision import LossScaler, Precision
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import BatchStream, micro_seeds, of_process


@dataclass
class Step:
    """Mean loss and metrics of a step, the gradient norm before clipping, and the micro-batches.

    `size` counts the data read, in the unit of the batches. `losses` are the loss sums of this process's micro-batches;
    they are tensors, so that the device need not synchronize.
    """

    loss: float
    norm: float
    size: int
    metrics: dict[str, float]
    batches: list[Any]
    losses: list[Tensor]


class Gradients:
    """Computes the gradients of each step in the master weights, summed over micro-batches and processes."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        stream: BatchStream,
        settings: TrainSettings,
        *,
        seed: int,
        parallel: ParallelStrategy,
    ):
        if settings.accumulation % parallel.size:
            raise InputError(
                f"train.accumulation: {settings.accumulation}; must be a multiple of the {parallel.size} processes "
                "that train together, which share the micro-batches of a step equally."
            )
        self.model, self.objective, self.settings, self.seed = model, objective, settings, seed
        self.parallel = parallel
        self.full_pass = Losses(model, objective)
        self.source = stream
        self.stream = of_process(stream, parallel.rank, parallel.size)
        self.saved: memory.Saved | None = None
        self.shape: tuple[int, ...] = ()
        self.unit = Batch.unit
        self.watch: GradientWatch | None = None

    def start(
        self, weights: Precision, scaler: LossScaler | None, compiled: Compiled, warn: Callable[[str], None]
    ) -> None:
        """Prepare for the first step, with the converted weights."""
        self.weights, self.scaler, self.compiled, self.warn = weights, scaler, compiled, warn
        self.losses = self.parallel.wrap(self.full_pass)
        self.watch = GradientWatch(weights.masters)

    def reseed(self, step: int) -> None:
        """Seed the random draws of a step from (seed, step) and, in processes other than the first, the rank."""
        rank = self.parallel.rank
        torch.manual_seed(hash((self.seed, step, rank) if rank else (self.seed, step)))

    def of(self, step: int) -> Step:
        """Compute the clipped gradient of the mean loss of step `step` (0-based).

        If torch.compile fails, the same micro-batches are processed again without it.
        """
        batches: list[Any] = []
        self.reseed(step)
        try:
            return self._accumulate(step, batches)
        except Exception as error:
            if not self.compiled.active or isinstance(error, QuatrainError) or memory.is_out_of_memory(error):
                raise
            self.compiled.give_up(error, self.warn)
            self.reseed(step)
            return self._accumulate(step, batches)

    def _accumulate(self, step: int, batches: list[Any]) -> Step:
        self.weights.clear()
        total: Tensor | float = 0.0
        weight: int | Tensor = 0
        size = 0
        losses: list[Tensor] = []
        sums = MetricSums()
        parts = self.settings.accumulation // self.parallel.size
        for number in range(parts):
            if number == len(batches):
                batches.append(self._next_batch(step, number))
            with contextlib.nullcontext() if number == parts - 1 else self.parallel.no_sync():
                loss, count, metrics = self._passes(step, batches[number])
            self.weights.gather()
            losses.append(loss)
            total = loss if number == 0 else total + loss
            weight = weight + count
            sums.add(metrics)
            size += batches[number].size
        self.parallel.synchronize(self._gathered())
        values = self.parallel.sum([total, weight, size, *sums.numbers()])
        divisor = values[1] if values[1] > 0 else 1.0
        steps_by_sum = getattr(self.objective, "steps_by_sum", False)
        if self.watch is not None:
            self.watch.check()
        norm = self._scale(1.0 if steps_by_sum else divisor)
        return Step(values[0] / divisor, norm, int(values[2]), sums.means(divisor, values[3:]), batches, losses)

    def _gathered(self) -> list[Tensor]:
        """The gradients of all micro-batches. Sparse ones have each row once; processes exchange them as dense ones.

        An expert that is idle in one process may be used in another, so that with several each has a gradient.
        """
        found = []
        for name, master in self.weights.masters.items():
            if master.grad is None and self.parallel.size > 1 and ".experts." in name:
                master.grad = torch.zeros_like(master)
            if master.grad is None:
                continue
            if master.grad.is_sparse:
                master.grad = master.grad.coalesce() if self.parallel.size == 1 else master.grad.to_dense()
            found.append(master.grad)
        return found

    def _next_batch(self, step: int, number: int) -> Any:
        """Micro-batch `number` of this process in a step; its random draws depend on its position in the run."""
        examples = self.stream.next()
        place = step * self.settings.accumulation + number * self.parallel.size + self.parallel.rank
        batch = collate(self.objective, examples, micro_seeds(self.stream, self.seed, place)).to(self.device)
        self.shape, self.unit = batch.shape, batch.unit
        return batch

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def _passes(self, step: int, batch: Any) -> tuple[Tensor, int | Tensor, Mapping[str, Metric]]:
        """Forward and backward pass. Returns the summed loss, its weight and the metrics."""
        measuring: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.watch is not None and not self.compiled.active and not self.parallel.shards:
            self.saved = self.saved or memory.Saved(self.model)
            measuring = self.saved.measured(self.settings.activation_checkpointing)
        with measuring:
            loss, count, metrics = self.losses(batch)
        if not loss.requires_grad:
            raise QuatrainError(
                f"Step {step + 1}: the loss does not depend on a trainable weight, so nothing can be learned. "
                "Check which weights are frozen, and that the objective fits the model's head."
            )
        (loss if self.scaler is None else loss * self.scaler.factor).backward()
        return loss.detach(), count, metrics

    def _scale(self, weight: float) -> float:
        """Divide the summed gradients to the mean and clip it. Returns the norm of the mean before clipping."""
        scale = 1.0 if self.scaler is None else self.scaler.factor
        divisor = weight * scale / self.parallel.gradient_factor
        gradients = [dense_part(each.grad) for each in self.weights.masters.values() if each.grad is not None]
        norm = self.parallel.norm(gradients) / divisor
        largest = self.settings.max_grad_norm
        factor = min(1.0, largest / norm) if largest and norm > 0 else 1.0
        torch._foreach_mul_(gradients, factor / divisor)
        return norm

    def watched(self) -> str | None:
        """After the second optimizer step, a message about weights that do not learn; otherwise None."""
        if self.watch is None:
            return None
        text = self.watch.report()
        if self.watch.done:
            self.watch = None
        return text
