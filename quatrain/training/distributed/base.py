"""Where the trainer meets other processes: what it asks of them, and the answer of one process alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quatrain.training.objectives import Objective


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are; the CPU for one without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class Losses(nn.Module):
    """The whole way from a batch to its loss as one module, so that what wraps a module sees a pass begin and end."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> tuple[Tensor, int | Tensor, dict[str, float | Tensor]]:
        """The objective's loss, weight and metrics of a batch."""
        return self.objective.loss(self.model, batch)


class ParallelStrategy(Protocol):
    """What the trainer asks of the processes that train together.

    `gradient_factor` is what a synchronised gradient is multiplied by to be the sum over the processes: their number
    where the synchronisation takes the mean, as DDP's and FSDP's do. `shards` says that each process holds a part of
    every weight alone.
    """

    rank: int
    size: int
    is_main: bool
    gradient_factor: float
    shards: bool

    def shard(self, losses: Losses, dtype: torch.dtype) -> torch.dtype:
        """Parts the weights of a network that computes in `dtype`; returns the dtype in which they are held then."""
        ...

    def wrap(self, losses: Losses) -> nn.Module:
        """The module to call in the place of `losses`, whose forward is the whole way from a batch to its loss."""
        ...

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around the backward passes of all micro-batches of a step but the last: gradients stay in the process."""
        ...

    def synchronise(self, gradients: Sequence[Tensor]) -> None:
        """After the last backward pass: what the module that `wrap` gave has not exchanged by itself."""
        ...

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """The values, each summed over the processes, in one exchange."""
        ...

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's values, for all."""
        ...

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of all gradients together, of synchronised ones."""
        ...

    def whole(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it every process has all weights of the model, in full precision, and may use it alone."""
        ...

    def close(self, model: nn.Module) -> None:
        """The model is as it was before `shard` and `wrap`, with what it has learned."""
        ...

    def barrier(self) -> None:
        """Waits until every process is here."""
        ...


class SingleProcess:
    """One process: nothing to wrap, nothing to wait for."""

    rank = 0
    size = 1
    is_main = True
    gradient_factor = 1.0
    shards = False

    def shard(self, losses: Losses, dtype: torch.dtype) -> torch.dtype:
        """Parts nothing."""
        return dtype

    def wrap(self, losses: Losses) -> nn.Module:
        """The module itself."""
        return losses

    def no_sync(self) -> AbstractContextManager[Any]:
        """Does nothing."""
        return nullcontext()

    def synchronise(self, gradients: Sequence[Tensor]) -> None:
        """Does nothing."""

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """The values as numbers."""
        return [float(value) for value in values]

    def agree(self, values: Sequence[float]) -> list[float]:
        """The values."""
        return list(values)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The Euclidean norm of all gradients together; 0 without any."""
        if not gradients:
            return 0.0
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients)))).item()

    def whole(self, model: nn.Module) -> AbstractContextManager[None]:
        """Does nothing: all weights are here."""
        return nullcontext()

    def close(self, model: nn.Module) -> None:
        """Does nothing."""

    def barrier(self) -> None:
        """Does nothing."""
