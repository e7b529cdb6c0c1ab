"""Where the trainer meets other processes: what it asks of them, and the answer of one process alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quatrain.models.stack import Model
from quatrain.training.objectives import Objective


class Losses(nn.Module):
    """The whole way from a batch to its loss as one module, so that what wraps a module sees a pass begin and end."""

    def __init__(self, model: Model, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> tuple[Tensor, int | Tensor, dict[str, float | Tensor]]:
        """The objective's loss, weight and metrics of a batch."""
        return self.objective.loss(self.model, batch)


class Parallel(Protocol):
    """What the trainer asks of the processes that train together.

    `gradient_factor` is what a synchronised gradient is multiplied by to be the sum over the processes: their number
    where the synchronisation takes the mean, as DDP's does.
    """

    rank: int
    size: int
    is_main: bool
    gradient_factor: float

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in the place of `module`, whose forward is the whole way from a batch to its loss."""
        ...

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around the backward passes of all micro-batches of a step but the last: gradients stay in the process."""
        ...

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """The values, each summed over the processes, in one exchange."""
        ...

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of all gradients together, of synchronised ones."""
        ...

    def barrier(self) -> None:
        """Waits until every process is here."""
        ...


class Single:
    """One process: nothing to wrap, nothing to wait for."""

    rank = 0
    size = 1
    is_main = True
    gradient_factor = 1.0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Does nothing."""
        yield

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """The values as numbers."""
        return [float(value) for value in values]

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The Euclidean norm of all gradients together; 0 without any."""
        if not gradients:
            return 0.0
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients)))).item()

    def barrier(self) -> None:
        """Does nothing."""
