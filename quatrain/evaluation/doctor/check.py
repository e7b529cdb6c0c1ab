"""A check of the doctor: a pair of ways to compute the same thing, the largest difference allowed, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

LOGITS = 1e-5
"""The largest difference of two logits, beyond the rounding of float32 in the model itself."""
GRADIENTS = 1e-6
"""The same for losses and gradients."""

HOLDS, FAILED, NOT_APPLICABLE, NOT_RUN = "holds", "failed", "not applicable", "not run"


class DoesNotApply(Exception):
    """A check means nothing for this model; the text is the reason."""


class NotRun(Exception):
    """A check applies, but cannot run here: a library is missing, or time or memory is too small."""


@dataclass(frozen=True)
class Finding:
    """What a check found: the difference, in the unit of its check, and what was compared.

    `limit` replaces the limit of the check where it depends on the model.
    """

    difference: float
    detail: str = ""
    limit: float | None = None


@dataclass(frozen=True)
class Check:
    """A pair that must agree: its name, what agrees within `limit`, and what to do where it does not.

    `run` gets a `ModelUnderTest` and raises DoesNotApply or NotRun with a reason. `unit` is what the difference
    counts: "logits", "ids", …
    """

    name: str
    pair: str
    unit: str
    limit: float
    remedy: str
    run: Callable[[Any], Finding]


@dataclass(frozen=True)
class Row:
    """The result of a check. `status`: "holds", "failed", "not applicable" or "not run"; `note` says why or how."""

    name: str
    pair: str
    status: str
    difference: float | None
    limit: float
    unit: str
    note: str
    remedy: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; a difference that is not finite is a text."""
        values = asdict(self)
        if self.difference is not None and not math.isfinite(self.difference):
            values["difference"] = str(self.difference)
        return values


def difference(one: Tensor, other: Tensor) -> float:
    """The largest |a - b| / (1 + |b|) of two tensors of one shape, inf for NaN or unequal shapes.

    This is the tolerance of `torch.testing.assert_close` with equal absolute and relative parts: small values are
    compared absolutely, large ones relatively. Equal infinities do not differ.
    """
    if one.shape != other.shape:
        return math.inf
    if not one.numel():
        return 0.0
    a, b = one.detach().double().cpu(), other.detach().double().cpu()
    gaps = ((a - b).abs() / (1 + b.abs())).masked_fill(a == b, 0.0)
    return float(torch.nan_to_num(gaps, nan=math.inf, posinf=math.inf).max())


def differences(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest `difference` of the pairs; 0 without any."""
    return max((difference(one, other) for one, other in pairs), default=0.0)
