"""The live display of a run in a terminal: stage, progress bar, metrics, speed and remaining time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID
from rich.table import Column, Table
from rich.text import Text

from quatrain.core.reporter import Clock, ProgressTask
from quatrain.core.wording import format_duration, format_metric, format_metrics, printable


def _bar(width: int) -> int:
    """The width of the progress bar in a terminal of `width` columns; 0 if the text needs the space."""
    return 24 if width >= 100 else 8 if width >= 72 else 0


def _text(text: object, style: str = "") -> Text:
    """Untrusted text: rich markup is not interpreted, control characters are escaped."""
    return Text(printable(str(text)), style)


class LiveReporter:
    """Draws progress with rich; texts are never interpreted as markup."""

    def __init__(self, stream: TextIO | None = None):
        self.console = Console(file=stream, highlight=False)
        self.heading = ""

    def stage(self, index: int, total: int, name: str, detail: str = "") -> None:
        self.heading = f"{index}/{total}"
        text = Text.assemble((f"Stage {index} of {total}", "bold cyan"), "  ", _text(name, "bold"))
        if detail:
            text.append_text(_text(f"  {detail}", "dim"))
        self.console.print()
        self.console.print(text)

    def task(self, name: str, total: int | None = None, unit: str = "step") -> ProgressTask:
        return _LiveTask(self, name, total, unit)

    def info(self, text: str) -> None:
        self.console.print(_text(text))

    def warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "bold yellow"), _text(text)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(title=_text(title, "bold"), title_justify="left", header_style="bold")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(_text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_text("" if value is None else value) for value in row))
        self.console.print(table)

    def score(self, name: str, metrics: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> None:
        parts = Text.assemble("  ", _text(name, "bold"), "  ")
        for index, (key, value) in enumerate(metrics.items()):
            parts.append(", " if index else "")
            parts.append_text(_text(f"{key.replace('_', ' ')} "))
            parts.append_text(_text(format_metric(key, value), "green"))
        main = next((key for key in baseline or {} if key in metrics), None)
        if baseline and main is not None:
            parts.append_text(_text(f" (baseline: {main.replace('_', ' ')} {format_metric(main, baseline[main])})"))
        self.console.print(parts)


class _Words(ProgressColumn):
    """The text next to the bar, cut to the available width, with the current time."""

    def __init__(self, work: _LiveTask):
        super().__init__(Column(no_wrap=True))
        self.work = work

    def render(self, task: Any) -> Text:
        console = self.work.reporter.console
        bar = _bar(console.width)
        return Text(self.work.words(console.width - 2 - (bar + 1 if bar else 0)))


class _LiveTask:
    """One bar, which leaves a single line when it ends."""

    def __init__(self, reporter: LiveReporter, name: str, total: int | None, unit: str):
        self.reporter, self.name, self.unit = reporter, printable(name), unit
        self.clock = Clock(total)
        self.metrics: dict[str, float] = {}
        columns: list[ProgressColumn] = [SpinnerColumn()]
        if bar := _bar(reporter.console.width):
            columns.append(BarColumn(bar_width=bar))
        self.progress = Progress(*columns, _Words(self), console=reporter.console, transient=True, refresh_per_second=8)
        self.id: TaskID = self.progress.add_task("", total=total)

    def update(self, step: int, **metrics: float) -> None:
        self.clock.set(step)
        self.metrics.update(metrics)
        self.progress.update(self.id, completed=step)

    def advance(self, steps: int = 1, **metrics: float) -> None:
        self.update(self.clock.step + steps, **metrics)

    def words(self, room: int) -> str:
        """The name, the steps, the metrics and the times, in so many columns.

        Where not all has room, the time left and the steps stay longest, then the loss, the name, the other metrics.
        """
        clock = self.clock
        total = f"/{clock.total:,}" if clock.total is not None else ""
        steps = f"{clock.step:,}{total}" if clock.step or total else ""
        left = f"{format_duration(clock.remaining)} left" if clock.remaining is not None else ""
        heading = f"{self.reporter.heading} {self.name}" if self.reporter.heading else self.name
        names = list(self.metrics)
        counts = range(1, len(names) + 1)
        metrics = [printable(format_metrics({name: self.metrics[name] for name in names[:n]})) for n in counts]
        chosen = dict.fromkeys(("name", "steps", "metrics", "elapsed", "left"), "")
        # The first metric, which is the loss, matters more than the rest of them.
        candidates = [("left", left), ("steps", steps), ("metrics", "".join(metrics[:1])), ("name", heading)]
        candidates += [("metrics", text) for text in metrics[1:]] + [("elapsed", format_duration(clock.elapsed))]
        for name, text in candidates:
            tried = chosen | {name: text}
            if text and cell_len(_joined(tried)) <= room:
                chosen = tried
        return _joined(chosen) or set_cell_size(left or steps or heading, max(1, room))

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
            self.reporter.console.print(_text(line))


def _joined(parts: Mapping[str, str]) -> str:
    """The parts that say something, in their order."""
    return " · ".join(text for text in parts.values() if text)
