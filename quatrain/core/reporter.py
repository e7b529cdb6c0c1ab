"""How work reports its progress: the protocols `Reporter` and `ProgressTask`, and the clock of a progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol


class ProgressTask(Protocol):
    """One piece of work with a known or unknown number of steps."""

    def update(self, step: int, **metrics: float) -> None:
        """Report that `step` steps of the total are done, with the latest metrics."""

    def advance(self, steps: int = 1, **metrics: float) -> None:
        """Report that `steps` more steps are done."""

    def __enter__(self) -> ProgressTask: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Reporter(Protocol):
    """Receives the progress of a run."""

    def stage(self, index: int, total: int, name: str, detail: str = "") -> None:
        """A stage starts; `index` counts from 1."""

    def task(self, name: str, total: int | None = None, unit: str = "step") -> ProgressTask:
        """Start a piece of work; use the result as a context manager."""

    def info(self, text: str) -> None:
        """Show a line of information."""

    def warn(self, text: str) -> None:
        """Show a warning."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a small table."""

    def score(self, name: str, metrics: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> None:
        """The scores on one set, the main metric first, and those of the task's dumb baseline.

        `score("new values", {"execution_accuracy": 0.97, "count": 200}, {"execution_accuracy": 0.01})`
        """


class Clock:
    """Steps done, elapsed time, and remaining time estimated from the speed since the first update."""

    def __init__(self, total: int | None):
        self.total = total
        self.step = 0
        self.started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def set(self, step: int) -> None:
        self.step = step
        if self._first is None:
            self._first = (time.monotonic(), step)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left; None without a total or before the speed is known."""
        if self.total is None or self._first is None:
            return None
        first_time, first_step = self._first
        done = self.step - first_step
        if done <= 0:
            return None
        return (time.monotonic() - first_time) / done * max(0, self.total - self.step)
