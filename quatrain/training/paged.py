"""Optimizers whose states live in host memory and come to the device one tensor at a time, while it is updated.

After the paged optimizers of Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), without CUDA's unified memory: states are
copied from and to pinned memory by the stream that computes. The numbers are those of the optimizer that stays there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quatrain.training.adamw8bit import AdamW8bit


class Paged(torch.optim.Optimizer):
    """Goes before an optimizer that looks at each parameter alone, in the bases of a class."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        groups = self.param_groups
        devices = set[torch.device]()
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    with self._at_hand(parameter):
                        self.param_groups = [group | {"params": [parameter]}]
                        super().step()
                    devices.add(parameter.device)
        finally:
            self.param_groups = groups
        for device in devices:
            if device.type == "cuda":  # the copies back are to be whole when anyone looks at them
                torch.cuda.current_stream(device).synchronize()

    @contextmanager
    def _at_hand(self, parameter: Tensor) -> Iterator[None]:
        """Within it the states of a parameter are on its device."""
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
    """A tensor in host memory, pinned where it comes from CUDA; in `place` where there is one already."""
    if place is None:
        place = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
    return place.copy_(value, non_blocking=place.is_pinned())


class PagedAdamW(Paged, torch.optim.AdamW):
    """PyTorch's AdamW, paged."""


class PagedAdamW8bit(Paged, AdamW8bit):
    """AdamW with moments of eight bits, paged."""
