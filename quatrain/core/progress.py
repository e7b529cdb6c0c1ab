"""Progress of a run: what the user sees, and the metrics log.

The `Reporter` protocol has four implementations: a live display in a terminal, plain lines with the time for a file
or a pipe, JSON lines for programs, and a silent one. Work is reported as

    with reporter.task("pretrain", total=500, unit="step") as task:
        for step in range(500):
            ...
            task.update(step + 1, loss=2.1, tokens_per_second=51_000)

`MetricsLog` appends to a run's `metrics.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

from quatrain.core.reporter import Clock, ProgressTask, Reporter
from quatrain.core.wording import format_duration, format_metrics, json_line, printable, text_table, write_text

PLAIN_INTERVAL = 5.0
"""Seconds between two progress lines if the output is not a terminal."""


def create_reporter(*, json_lines: bool = False, quiet: bool = False, stream: TextIO | None = None) -> Reporter:
    """The reporter that suits `stream`, which is standard output by default."""
    stream = stream or sys.stdout
    if json_lines:
        return JsonReporter(stream)
    if quiet:
        return SilentReporter()
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from quatrain.core.live import LiveReporter

        return LiveReporter(stream)
    return PlainReporter(stream)


class _LineTask:
    """A task that writes a line through its reporter at most once per interval."""

    def __init__(self, reporter: PlainReporter | JsonReporter, name: str, total: int | None, unit: str):
        self.reporter, self.name, self.unit = reporter, name, unit
        self.clock = Clock(total)
        self.metrics: dict[str, float] = {}
        self._last = time.monotonic()
        self._written = -1

    def update(self, step: int, **metrics: float) -> None:
        self.clock.set(step)
        self.metrics.update(metrics)
        now = time.monotonic()
        if now - self._last >= self.reporter.interval:
            self._last = now
            self._write()

    def advance(self, steps: int = 1, **metrics: float) -> None:
        self.update(self.clock.step + steps, **metrics)

    def _write(self) -> None:
        self._written = self.clock.step
        self.reporter.task_line(self)

    def __enter__(self) -> _LineTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.clock.step and self.clock.step != self._written:
            self._write()


class PlainReporter:
    """Writes plain lines with the time of day, for files and pipes."""

    interval = PLAIN_INTERVAL

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout

    def _line(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        for line in text.splitlines() or [""]:
            write_text(self.stream, printable(f"{stamp} {line}".rstrip()) + "\n")
        self.stream.flush()

    def stage(self, index: int, total: int, name: str, detail: str = "") -> None:
        self._line(f"stage {index}/{total}: {name}" + (f", {detail}" if detail else ""))

    def task(self, name: str, total: int | None = None, unit: str = "step") -> ProgressTask:
        return _LineTask(self, name, total, unit)

    def task_line(self, task: _LineTask) -> None:
        """Write a progress line of a task."""
        clock = task.clock
        of = f"/{clock.total:,}" if clock.total is not None else ""
        parts = [f"{task.name}: {task.unit} {clock.step:,}{of}"]
        if task.metrics:
            parts.append(format_metrics(task.metrics))
        parts.append(f"elapsed {format_duration(clock.elapsed)}")
        if clock.remaining:
            parts.append(f"left {format_duration(clock.remaining)}")
        self._line(", ".join(parts))

    def info(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self._line(title)
        for line in text_table(columns, rows).splitlines():
            self._line(f"  {line}")

    def score(self, name: str, metrics: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> None:
        main = next(((key, value) for key, value in (baseline or {}).items() if key in metrics), None)
        comparison = f" (baseline: {format_metrics(dict([main]))})" if main else ""
        self._line(f"{name}: {format_metrics(metrics)}{comparison}")


class JsonReporter:
    """Writes JSON lines, for programs."""

    interval = 1.0

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout

    def emit(self, event: str, **values: Any) -> None:
        """Write one event."""
        record = {"event": event, "time": round(time.time(), 3)} | values
        write_text(self.stream, json_line(record, self.stream.encoding) + "\n")
        self.stream.flush()

    def stage(self, index: int, total: int, name: str, detail: str = "") -> None:
        self.emit("stage", index=index, total=total, name=name, detail=detail)

    def task(self, name: str, total: int | None = None, unit: str = "step") -> ProgressTask:
        return _LineTask(self, name, total, unit)

    def task_line(self, task: _LineTask) -> None:
        """Write a progress event of a task."""
        clock = task.clock
        left = None if clock.remaining is None else round(clock.remaining, 1)
        values = {"task": task.name, "unit": task.unit, "step": clock.step, "total": clock.total}
        self.emit("progress", **values, seconds=round(clock.elapsed, 2), seconds_left=left, metrics=task.metrics)

    def info(self, text: str) -> None:
        self.emit("info", text=text)

    def warn(self, text: str) -> None:
        self.emit("warning", text=text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.emit("table", title=title, columns=list(columns), rows=[list(row) for row in rows])

    def score(self, name: str, metrics: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> None:
        comparison = {"baseline": dict(baseline)} if baseline else {}
        self.emit("score", name=name, metrics=dict(metrics), **comparison)


class SilentReporter:
    """Writes nothing, for use as a library."""

    def stage(self, index: int, total: int, name: str, detail: str = "") -> None:
        pass

    def task(self, name: str, total: int | None = None, unit: str = "step") -> ProgressTask:
        return _SilentTask()

    def info(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        pass

    def score(self, name: str, metrics: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> None:
        pass


class _SilentTask:
    def update(self, step: int, **metrics: float) -> None:
        pass

    def advance(self, steps: int = 1, **metrics: float) -> None:
        pass

    def __enter__(self) -> _SilentTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class MetricsLog:
    """Appends one stage's metrics to `metrics.jsonl`, each line flushed as it is written.

    `resume_step` is the step from which the stage resumes: lines that an interrupted attempt wrote after it are removed
    first, and so is an incomplete last line. No step appears twice.
    """

    def __init__(self, path: Path | str, stage: str, *, resume_step: int = 0):
        self.stage = stage
        drop_metrics(path, stage, after=resume_step)
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, step: int, **metrics: Any) -> None:
        """Append one line: `{"stage": ..., "step": ..., **metrics}`. Values that are not finite become null."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in metrics.items()
        }
        self._file.write(json.dumps({"stage": self.stage, "step": step} | finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def drop_metrics(path: Path | str, stage: str, *, after: int) -> None:
    """Remove a stage's lines after step `after` from a `metrics.jsonl`, and incomplete lines."""
    path = Path(path)
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8", errors="replace")
    lines = "".join(
        json.dumps(record) + "\n"
        for record in read_metrics(path)
        if record.get("stage") != stage or record.get("step", 0) <= after
    )
    if lines != content:
        from quatrain.core.atomic import write_text as write_file

        write_file(path, lines)


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, without an incomplete line of a killed process."""
    records = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                records.append(record)
    return records
