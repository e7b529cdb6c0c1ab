"""Metrics of an objective, summed over micro-batches and processes and divided once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

Number = float | Tensor


class PartMean(NamedTuple):
    """A metric over a part of what the loss counts, such as the chosen answers alone: its sum and the part's weight."""

    total: Number
    weight: Number


Metric = Number | PartMean
"""A sum that the weight of the loss divides, or one with a weight of its own."""


class MetricSums:
    """The sums of an objective's metrics."""

    def __init__(self) -> None:
        self._totals: dict[str, Number] = {}
        self._weights: dict[str, Number] = {}

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Add the metrics of a micro-batch."""
        for name, value in metrics.items():
            if isinstance(value, PartMean):
                value, weight = value
                self._weights[name] = self._weights.get(name, 0.0) + weight
            self._totals[name] = self._totals.get(name, 0.0) + value

    def total(self, name: str, default: float = 0.0) -> float:
        """The sum of one metric."""
        return float(self._totals.get(name, default))

    def numbers(self) -> list[Number]:
        """All sums and weights, in an order that all processes share."""
        return [self._totals[name] for name in sorted(self._totals)] + [
            self._weights[name] for name in sorted(self._weights)
        ]

    def means(self, weight: float, numbers: Iterable[Number] | None = None) -> dict[str, float]:
        """Each metric divided by its weight, or by that of the loss. A part that is empty has no mean.

        `numbers` replaces those of `numbers()`, after an exchange with other processes.
        """
        values = [float(value) for value in (self.numbers() if numbers is None else numbers)]
        names, parts = sorted(self._totals), sorted(self._weights)
        weights = dict(zip(parts, values[len(names) :], strict=True))
        pairs = ((name, total, weights.get(name, weight)) for name, total in zip(names, values, strict=False))
        return {name: total / divisor for name, total, divisor in pairs if divisor > 0}
