"""Mixed precision: the network computes in bfloat16 or float16, the optimizer updates float32 master weights.

Micikevicius et al. 2018 (arXiv 1710.03740). Master weights keep small updates that bfloat16 would round away. Forward
and backward passes take half the memory and, on hardware with such instructions, a fraction of the time. float16 has
more precision and less range; scaling the loss keeps its gradients in range.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.allocation import large_apart
from quatrain.planning.machine import fastest_precision
from quatrain.training.settings import TrainSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CHECKED_AT_ONCE = 1 << 22
"""Elements of a frozen weight that are checked at a time."""


def working_dtype(settings: TrainSettings, device: torch.device) -> torch.dtype:
    """The dtype of `settings.precision`; "auto" measures which dtype is fastest on this device."""
    name = settings.precision
    return DTYPES[fastest_precision(device.type) if name == "auto" else name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in settings and files, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


class LossScaler:
    """The loss scale of float16: halved when a gradient overflows, doubled after `patience` good steps.

    The trainer's losses are sums over tokens, so the scale starts at 2^16 divided by the tokens of a micro-batch. It is
    always a power of two, so that scaling is exact.
    """

    def __init__(self, tokens: int, patience: int = 2000):
        self.factor = 2.0 ** (16 - max(1, tokens).bit_length())
        self.patience, self.good = patience, 0

    def advance(self, finite: bool) -> None:
        """Update the scale after a step, given whether all its gradients were finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.good == self.patience:
            self.factor, self.good = self.factor * 2, 0

    @property
    def exhausted(self) -> bool:
        """Whether the scale is so small that overflow cannot be the cause of bad gradients."""
        return self.factor < 2.0**-24

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "good": self.good}

    def load_state(self, state: dict[str, Any]) -> None:
        self.factor, self.good = state["factor"], state["good"]


class Precision:
    """Holds the model's parameters in `dtype` during training, and float32 masters of the trainable ones, by name.

    With float32 the masters are the parameters themselves. `close` restores the dtype of every weight; trained weights
    get the values of their masters. A frozen weight that `dtype` represents exactly, such as a weight read from a
    bfloat16 file, is held in `dtype` only. `exact` states whether frozen weights are exact, for meta tensors without
    values.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, exact: bool | None = None):
        self.dtype = dtype
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        self._exact: list[tuple[nn.Parameter, torch.dtype]] = []
        self.masters: dict[str, nn.Parameter] = {}
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        with large_apart():
            self._narrow(model, exact)

    def _narrow(self, model: nn.Module, exact: bool | None) -> None:
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or parameter.dtype == self.dtype:
                if parameter.requires_grad:
                    self.masters[name] = parameter
                continue
            if not parameter.requires_grad and _is_exact(parameter.data, self.dtype, exact):
                self._exact.append((parameter, parameter.dtype))
            else:
                self._kept.append((parameter, parameter.data))
            if parameter.requires_grad:
                self.masters[name] = nn.Parameter(parameter.data)
                self._pairs.append((parameter, self.masters[name]))
            parameter.data = parameter.data.to(self.dtype)

    def gather(self) -> None:
        """Add the gradients of the last backward pass to those of the masters, in float32, and clear them."""
        for parameter, master in self._pairs:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the network, after the optimizer step."""
        if self._pairs:
            # Not into `.data`: an engine notices changed weights by the versions of the parameters.
            torch._foreach_copy_([parameter for parameter, _ in self._pairs], [master for _, master in self._pairs])

    def clear(self) -> None:
        for master in self.masters.values():
            master.grad = None
        for parameter, _ in self._pairs:
            parameter.grad = None

    @contextmanager
    def full(self) -> Iterator[None]:
        """In this context the network holds its weights in full precision, for validation and for saving."""
        working = [(parameter, parameter.data) for parameter, _ in self._kept]
        dtypes = [(parameter, parameter.dtype) for parameter, _ in self._exact]
        self._restore()
        try:
            yield
        finally:
            for parameter, data in working:
                parameter.data = data
            _convert(dtypes)
            self.publish()

    def _restore(self) -> None:
        for parameter, original in self._kept:
            parameter.data = original
        _convert(self._exact)

    def close(self) -> None:
        """Restore the original dtypes; see the class."""
        self._restore()
        self._kept, self._exact, self._pairs = [], [], []


def _convert(targets: list[tuple[nn.Parameter, torch.dtype]]) -> None:
    """Convert parameters to these dtypes one by one, so that at most one is in memory twice."""
    if targets:
        with large_apart():
            for parameter, dtype in targets:
                parameter.data = parameter.data.to(dtype)


def _is_exact(tensor: Tensor, dtype: torch.dtype, exact: bool | None) -> bool:
    """Whether a dtype represents every value of a tensor exactly; `exact` answers without a check."""
    if exact is not None or type(tensor) is not Tensor:  # sharded tensors are not checked
        return bool(exact)
    parts = tensor.detach().reshape(-1).split(CHECKED_AT_ONCE)
    return all(torch.equal(part.to(dtype).to(part.dtype), part) for part in parts)
