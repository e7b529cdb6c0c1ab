"""Data parallelism: every process has the whole model and its own micro-batches; PyTorch's DDP exchanges gradients.

Li et al. 2020 (arXiv 2006.15704). If the network computes in bfloat16 over float32 masters, the gradients of the
masters are summed instead, once per step, so that the sum is not rounded.
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

from quatrain.training.distributed.base import Losses, ParallelStrategy


class MultiProcess(ParallelStrategy):
    """Communication between several processes; base of the strategies."""

    def __init__(self, device: torch.device):
        self.device = device
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.is_main = self.rank == 0

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Sum each value over the processes in float64, in one exchange."""
        both = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        distributed.all_reduce(both)
        return both.tolist()

    def agree(self, values: Sequence[float]) -> list[float]:
        both = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        distributed.broadcast(both, 0)
        return both.tolist()

    def barrier(self) -> None:
        distributed.barrier()


class Replicated(MultiProcess):
    """DDP. In float32, gradients are exchanged during the backward pass; with masters, after it."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.gradient_factor = 1.0
        self._wrapped: DistributedDataParallel | None = None

    def shard(self, losses: Losses, dtype: torch.dtype) -> torch.dtype:
        """Shards nothing. The dtype decides how gradients are exchanged."""
        narrow = dtype != torch.float32 or any(parameter.dtype != dtype for parameter in losses.parameters())
        self.gradient_factor = 1.0 if narrow else float(self.size)
        self._overlaps = not narrow
        return dtype

    def wrap(self, losses: Losses) -> nn.Module:
        """The module under DDP, or unchanged if gradients of masters are exchanged."""
        if not self._overlaps:
            return losses
        device_ids = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about a new name of broadcast_buffers
            # A head may have weights that this objective does not use, such as a pooler.
            self._wrapped = DistributedDataParallel(
                losses, device_ids=device_ids, broadcast_buffers=False, find_unused_parameters=True
            )
        return self._wrapped

    def no_sync(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._wrapped is None else self._wrapped.no_sync()

    def synchronize(self, gradients: Sequence[Tensor]) -> None:
        """Sum the gradients of the masters over the processes."""
        if self._overlaps:
            return
        for part in _portions(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in part])
            distributed.all_reduce(flat)
            torch._foreach_copy_([each.reshape(-1) for each in part], list(flat.split([each.numel() for each in part])))

    def close(self, model: nn.Module) -> None:
        """Drop the DDP wrapper; the model itself was not changed."""
        self._wrapped = None


def _portions(tensors: Sequence[Tensor], limit: int = 25_000_000) -> Iterator[list[Tensor]]:
    """Groups of consecutive tensors with about `limit` elements each."""
    part: list[Tensor] = []
    for tensor in tensors:
        part.append(tensor)
        if sum(each.numel() for each in part) >= limit:
            yield part
            part = []
    if part:
        yield part
