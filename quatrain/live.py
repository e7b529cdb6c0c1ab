"""The live display of a run in a terminal: the stage, a bar, the metrics, the speed and the time left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from quatrain.progress import Task, _Clock
from quatrain.wording import format_duration, format_metric, format_metrics


class LiveReporter:
    """Draws the work with rich; texts of the user are never read as markup."""

    def __init__(self, stream: TextIO | None = None):
        self.console = Console(file=stream, highlight=False)
        self.heading = ""

    def stage(self, index: int, total: int, name: str, detail: str = "") -> None:
        self.heading = f"{index}/{total}"
        text = Text.assemble((f"Stage {index} of {total}", "bold cyan"), "  ", (name, "bold"))
        if detail:
            text.append(f"  {detail}", "dim")
        self.console.print()
        self.console.print(text)

    def task(self, name: str, total: int | None = None, unit: str = "step") -> Task:
        return _LiveTask(self, name, total, unit)

    def info(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "bold yellow"), text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(title=Text(title, "bold"), title_justify="left", header_style="bold")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text("" if value is None else str(value)) for value in row))
        self.console.print(table)

    def score(self, name: str, metrics: Mapping[str, float]) -> None:
        parts = Text.assemble("  ", (name, "bold"), "  ")
        for index, (key, value) in enumerate(metrics.items()):
            parts.append(", " if index else "")
            parts.append(f"{key.replace('_', ' ')} ")
            parts.append(format_metric(key, value), "green")
        self.console.print(parts)


class _LiveTask:
    """One bar, which leaves a single line when it ends."""

    def __init__(self, reporter: LiveReporter, name: str, total: int | None, unit: str):
        self.reporter, self.name, self.unit = reporter, name, unit
        self.clock = _Clock(total)
        self.metrics: dict[str, float] = {}
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            console=reporter.console,
            transient=True,
            refresh_per_second=8,
        )
        heading = f"{reporter.heading} {name}" if reporter.heading else name
        self.id: TaskID = self.progress.add_task(escape(heading), total=total, details="")

    def update(self, step: int, **metrics: float) -> None:
        self.clock.set(step)
        self.metrics.update(metrics)
        self.progress.update(self.id, completed=step, details=escape(self._details()))

    def advance(self, steps: int = 1, **metrics: float) -> None:
        self.update(self.clock.step + steps, **metrics)

    def _details(self) -> str:
        parts = [format_metrics(self.metrics)] if self.metrics else []
        parts.append(format_duration(self.clock.elapsed))
        if self.clock.remaining is not None:
            parts.append(f"{format_duration(self.clock.remaining)} left")
        return " · ".join(parts)

    def __enter__(self) -> _LiveTask:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.clock.step:
            metrics = f", {format_metrics(self.metrics)}" if self.metrics else ""
            line = f"  {self.name}: {self.clock.step:,} {self.unit}s in {format_duration(self.clock.elapsed)}{metrics}"
            self.reporter.console.print(line, markup=False)
