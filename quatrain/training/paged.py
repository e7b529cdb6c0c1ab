"""Optimizers with states in host memory, copied to the device one tensor at a time for the update.

After the paged optimizers of QLoRA (Dettmers et al. 2023, arXiv 2305.14314), without CUDA's unified memory: the compute
stream copies states from and to pinned memory. The results equal those of the same optimizer with states on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quatrain.training.adamw8bit import AdamW8bit


class Paged(torch.optim.Optimizer):
    """Mixin for optimizers that update each parameter independently; put it first among the base classes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        devices = set[torch.device]()
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    with self._on_device(parameter):
                        self.param_groups = [group | {"params": [parameter]}]
                        super().step()
                    devices.add(parameter.device)
        finally:
            self.param_groups = groups
        for device in devices:
            if device.type == "cuda":  # the copies to the host must be complete before anyone reads them
                torch.cuda.current_stream(device).synchronize()

    @contextmanager
    def _on_device(self, parameter: Tensor) -> Iterator[None]:
        """In this context the states of a parameter are on its device."""
        state = self.state[parameter]
        host = dict(state)
        for name, value in host.items():
            if name != "step":
                state[name] = value.to(parameter.device, non_blocking=value.is_pinned(), copy=True)
        try:
            yield
        finally:
            for name, value in state.items():
                if name != "step":
                    state[name] = to_host(value, host.get(name))


def to_host(value: Tensor, place: Tensor | None = None) -> Tensor:
    """Copy a tensor to host memory, pinned if it comes from CUDA; into `place` if given."""
    if place is None:
        place = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
    return place.copy_(value, non_blocking=place.is_pinned())


class PagedAdamW(Paged, torch.optim.AdamW):
    """PyTorch's AdamW, paged."""


class PagedAdamW8bit(Paged, AdamW8bit):
    """AdamW with 8-bit moments, paged."""
