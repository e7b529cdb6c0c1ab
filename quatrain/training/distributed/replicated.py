"""Every process has the whole model and sees other micro-batches; gradients are exchanged by PyTorch's DDP.

Li et al. 2020 (arXiv 2006.15704). The network may compute in bfloat16 over float32 masters: then the masters' gradients
are what is summed, once a step, so that nothing is rounded on the way.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from quatrain.training.distributed.base import Losses, SingleProcess


class MultiProcess(SingleProcess):
    """What all processes of a group share, however the model is laid out."""

    def __init__(self, device: torch.device):
        self.device = device
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.is_main = self.rank == 0

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """The values, each summed over the processes, in float64 and in one exchange."""
        both = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        distributed.all_reduce(both)
        return both.tolist()

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's values."""
        both = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        distributed.broadcast(both, 0)
        return both.tolist()

    def barrier(self) -> None:
        """Waits until every process is here."""
        distributed.barrier()


class Replicated(MultiProcess):
    """DDP. In float32 gradients are exchanged while the backward pass goes on; with masters, after it."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.gradient_factor = 1.0
        self._wrapped: DistributedDataParallel | None = None

    def shard(self, losses: Losses, dtype: torch.dtype) -> torch.dtype:
        """Parts nothing. Which way gradients are exchanged follows from the dtype."""
        narrow = dtype != torch.float32 or any(parameter.dtype != dtype for parameter in losses.parameters())
        self.gradient_factor = 1.0 if narrow else float(self.size)
        self._overlaps = not narrow
        return dtype

    def wrap(self, losses: Losses) -> nn.Module:
        """The module under DDP, or as it is where its masters' gradients are exchanged."""
        if not self._overlaps:
            return losses
        device_ids = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a new name for broadcast_buffers
            # A head may have weights that this objective has no use for, a pooler say.
            self._wrapped = DistributedDataParallel(
                losses, device_ids=device_ids, broadcast_buffers=False, find_unused_parameters=True
            )
        return self._wrapped

    def no_sync(self) -> AbstractContextManager[Any]:
        """DDP's own."""
        return contextlib.nullcontext() if self._wrapped is None else self._wrapped.no_sync()

    def synchronise(self, gradients: Sequence[Tensor]) -> None:
        """Sums the masters' gradients over the processes."""
        if self._overlaps:
            return
        for part in _portions(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in part])
            distributed.all_reduce(flat)
            torch._foreach_copy_([each.reshape(-1) for each in part], list(flat.split([each.numel() for each in part])))

    def close(self, model: nn.Module) -> None:
        """The model itself was never changed."""
        self._wrapped = None


def _portions(tensors: Sequence[Tensor], limit: int = 25_000_000) -> Iterator[list[Tensor]]:
    """The tensors in order, so many at a time that they have about `limit` elements."""
    part: list[Tensor] = []
    for tensor in tensors:
        part.append(tensor)
        if sum(each.numel() for each in part) >= limit:
            yield part
            part = []
    if part:
        yield part
