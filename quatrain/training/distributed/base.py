"""The interface between the trainer and a parallel strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.training.objectives import Objective
from quatrain.training.objectives.metrics import Metric


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class Losses(nn.Module):
    """Model and objective as one module from batch to loss, so that DDP and FSDP wrap the whole pass."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> tuple[Tensor, int | Tensor, Mapping[str, Metric]]:
        """The objective's loss, weight and metrics for a batch."""
        return self.objective.loss(self.model, batch)


class ParallelStrategy:
    """How processes train together; this base class is the strategy of a single process.

    `gradient_factor` turns a synchronized gradient into the sum over the processes: it is their number if the
    synchronization takes the mean, as in DDP and FSDP. `shards`: each process holds only a shard of every weight.
    """

    rank = 0
    size = 1
    is_main = True
    gradient_factor = 1.0
    shards = False

    def shard(self, losses: Losses, dtype: torch.dtype) -> torch.dtype:
        """Shard the weights of a network that computes in `dtype`. Returns the dtype in which weights are stored."""
        return dtype

    def wrap(self, losses: Losses) -> nn.Module:
        """The module to call instead of `losses`, with the same forward."""
        return losses

    def no_sync(self) -> AbstractContextManager[Any]:
        """A context for backward passes of all but the last micro-batch of a step: gradients are not exchanged."""
        return nullcontext()

    def synchronize(self, gradients: Sequence[Tensor]) -> None:
        """Exchange, after the last backward pass, the gradients that the wrapped module has not exchanged."""

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Sum each value over the processes, in one exchange."""
        return [float(value) for value in values]

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's values, in every process."""
        return list(values)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The joint Euclidean norm of synchronized gradients; 0 without gradients."""
        if not gradients:
            return 0.0
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients)))).item()

    def full_weights(self, model: nn.Module) -> AbstractContextManager[None]:
        """In this context every process holds all weights in full precision and can use the model independently."""
        return nullcontext()

    def close(self, model: nn.Module) -> None:
        """Undo `shard` and `wrap`; the model keeps its trained weights."""

    def barrier(self) -> None:
        """Wait for all processes."""
