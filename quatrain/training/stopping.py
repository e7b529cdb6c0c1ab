"""Early stopping: tracks the best validation and stops after `patience` validations without improvement."""

from __future__ import annotations

import math
from typing import Any

from quatrain.core.errors import InputError
from quatrain.training.settings import TrainSettings

LOWER = ("loss", "perplexity", "error", "bits_per_byte", "bits_per_character")
"""Suffixes of the names of metrics that are better when lower."""


class Best:
    """The best value of `settings.metric` so far, its step, and the number of validations since."""

    def __init__(self, settings: TrainSettings):
        self.metric, self.patience = settings.metric, settings.patience
        lower = (
            self.metric.endswith(LOWER) if settings.metric_direction == "auto" else settings.metric_direction == "lower"
        )
        self._sign = -1.0 if lower else 1.0
        self.watched = bool(settings.patience) or settings.keep == "best"
        self.step: int | None = None
        self.value: float | None = None
        self.metrics: dict[str, float] = {}
        self.since = 0

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Record a validation. Returns whether it is the best so far. Raises InputError if the metric is missing."""
        if not self.watched:
            return False
        if self.metric not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise InputError(f'train.metric: "{self.metric}" is not measured; the validation metrics are: {known}.')
        value = float(metrics[self.metric])
        if math.isfinite(value) and (self.value is None or self._sign * value > self._sign * self.value):
            self.step, self.value, self.metrics, self.since = step, value, dict(metrics), 0
            return True
        self.since += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations have passed without improvement."""
        return bool(self.patience) and self.since >= self.patience

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "value": self.value, "metrics": _finite(self.metrics), "since": self.since}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.value, self.metrics, self.since = (state[key] for key in ("step", "value", "metrics", "since"))


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
