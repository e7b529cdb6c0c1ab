"""Training in bfloat16 or float16 with float32 masters: the network computes in one, the optimizer in the other.

Micikevicius et al. 2018 (arXiv 1710.03740). Small updates that bfloat16's 8 bits of mantissa would round away are kept
by the masters; forward and backward take half the memory and, where the machine has the instructions, a fraction of
the time. float16 has more mantissa and less range: its gradients are kept within it by a factor on the loss.
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

LOOKED_AT = 1 << 22
"""Numbers of a frozen weight that are looked at together."""


def working_dtype(settings: TrainSettings, device: torch.device) -> torch.dtype:
    """The dtype that `settings.precision` names; "auto" is the faster one on this device, by measuring."""
    wanted = settings.precision
    return DTYPES[fastest_precision(device.type) if wanted == "auto" else wanted]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16`: the name in settings and files."""
    return str(dtype).removeprefix("torch.")


class LossScaler:
    """The factor on a float16 loss: halved when a gradient leaves the range, doubled after `patience` good steps.

    The trainer's losses are sums over tokens, so the factor begins at 2^16 over a micro-batch's tokens, about what it
    would be for their mean. Powers of two only: multiplying by them loses nothing.
    """

    def __init__(self, tokens: int, patience: int = 2000):
        self.factor = 2.0 ** (16 - max(1, tokens).bit_length())
        self.patience, self.good = patience, 0

    def advance(self, finite: bool) -> None:
        """After a step: whether its gradients were all numbers."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.good == self.patience:
            self.factor, self.good = self.factor * 2, 0

    @property
    def exhausted(self) -> bool:
        """Whether the factor is so small that the range is not what is wrong."""
        return self.factor < 2.0**-24

    def state(self) -> dict[str, Any]:
        """The factor and the good steps since it changed."""
        return {"factor": self.factor, "good": self.good}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on with these."""
        self.factor, self.good = state["factor"], state["good"]


class Precision:
    """The model's parameters in `dtype` while it trains, and the float32 masters of those that learn, by name.

    With float32 the masters are the parameters themselves. `close` puts every weight back in the dtype that it had,
    trained ones with what their masters have become. A frozen weight that `dtype` holds without loss, as one read from
    a file of bfloat16 in bfloat16, is held in `dtype` alone meanwhile; `exact` says of all of them whether they are
    such, for tensors without numbers, which cannot be looked at.
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
            if not parameter.requires_grad and _holds(parameter.data, self.dtype, exact):
                self._exact.append((parameter, parameter.dtype))
            else:
                self._kept.append((parameter, parameter.data))
            if parameter.requires_grad:
                self.masters[name] = nn.Parameter(parameter.data)
                self._pairs.append((parameter, self.masters[name]))
            parameter.data = parameter.data.to(self.dtype)

    def gather(self) -> None:
        """Adds the gradients of the last backward pass to the masters', in float32, and clears them."""
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
        """Copies the masters into the network, after the optimizer's step."""
        if self._pairs:
            torch._foreach_copy_(
                [parameter.data for parameter, _ in self._pairs], [master.data for _, master in self._pairs]
            )

    def clear(self) -> None:
        """Forgets all gradients."""
        for master in self.masters.values():
            master.grad = None
        for parameter, _ in self._pairs:
            parameter.grad = None

    @contextmanager
    def full(self) -> Iterator[None]:
        """Within it the network holds its weights in full precision: for validation and for writing them."""
        working = [(parameter, parameter.data) for parameter, _ in self._kept]
        dtypes = [(parameter, parameter.dtype) for parameter, _ in self._exact]
        self._restore()
        try:
            yield
        finally:
            for parameter, data in working:
                parameter.data = data
            _turn(dtypes)
            self.publish()

    def _restore(self) -> None:
        for parameter, original in self._kept:
            parameter.data = original
        _turn(self._exact)

    def close(self) -> None:
        """Ends the training's precision."""
        self._restore()
        self._kept, self._exact, self._pairs = [], [], []


def _turn(wanted: list[tuple[nn.Parameter, torch.dtype]]) -> None:
    """Brings parameters into these dtypes, one after the other, so that no more than one is held twice."""
    if wanted:
        with large_apart():
            for parameter, dtype in wanted:
                parameter.data = parameter.data.to(dtype)


def _holds(tensor: Tensor, dtype: torch.dtype, exact: bool | None) -> bool:
    """Whether a dtype has every number of a tensor, by a look at them where nobody has said so."""
    if exact is not None or type(tensor) is not Tensor:  # what several processes share stays as it is
        return bool(exact)
    parts = tensor.detach().reshape(-1).split(LOOKED_AT)
    return all(torch.equal(part.to(dtype).to(part.dtype), part) for part in parts)
