"""Runs inputs in processes that are forked from one that has imported everything.

A fork costs as much as an input, so one process runs many, each in a folder of its own with streams, variables and
arguments as a process finds them. Such a process only sorts: an input whose end is not plainly right is run again in a
process of its own, and that end counts. So does the end of an input that is about its process: its variables, its
streams, how its interpreter begins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing import judging
from fuzzing.case import Bench, Case
from fuzzing.entries import Kind
from fuzzing.judging import Ending, Outcome
from fuzzing.materials import Materials

ROOT = Path(__file__).resolve().parents[2]
BATCH = 25
"""The inputs of a process."""
ADDRESSES = 12 * 1024**3
"""What a child may ask the system for: beyond it an allocation fails, before the machine does."""
WRITTEN = 256 * 1024**2
FAILED = 3
"""Exit code of a process whose input could not be made: a fault of this program."""
PATIENCE = 5.0
"""Seconds of an input among others; one that takes longer is run again alone, where it has its whole time."""


@dataclass(frozen=True)
class Plan:
    """What is drawn from: a seed, and kinds with their shares."""

    seed: int
    kinds: dict[str, Kind]
    materials: Materials
    place: Path
    limit: float
    """Seconds of an input; beyond them it hangs."""

    def case(self, number: int) -> tuple[str, Case]:
        """An input, made in the current folder, and its kind."""
        draw = random.Random(f"{self.seed}:{number}")
        kind = draw.choices(list(self.kinds), [share for _, share in self.kinds.values()])[0]
        return kind, self.kinds[kind][0](Bench(draw, self.materials))


class Child:
    """Some inputs, one after another, in a process that is forked from this one; or one input alone."""

    def __init__(self, plan: Plan, numbers: Sequence[int], *, is_alone: bool):
        self.plan, self.is_alone = plan, is_alone
        self.left = deque(numbers)
        """Those of which nothing was reported."""
        self.busy, self.before = 0.0, 0.0
        self.began = self.looked = time.monotonic()
        self.is_killed = False
        self._reports, reporting = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reports)
            os._exit(_alone(plan, numbers[0]) if is_alone else _together(plan, numbers, reporting))
        os.close(reporting)
        os.set_blocking(self._reports, False)
        self._text = b""

    def reports(self) -> Iterator[dict[str, Any]]:
        """What it has told since the last call, an input after another."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reports, 65_536):
                self._text += part
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            report: dict[str, Any] = json.loads(line)
            self.left.remove(report["number"])
            self.began, self.before = time.monotonic(), self.before + report["seconds"]
            yield report

    def watch(self) -> None:
        """Ends it where the time of an input is over: the processor's, or the clock's where it does nothing.

        Where others keep the processors busy, it has longer.
        """
        limit = self.plan.limit if self.is_alone else min(PATIENCE, self.plan.limit)
        now = time.monotonic()
        if now - self.began < limit or now < self.looked + 1:
            return
        self.looked, last, self.busy = now, self.busy, _processor_seconds(self.pid)
        is_idle = self.busy - last < 0.01 and not _is_waiting_for_a_processor(self.pid)
        if is_idle or self.busy - self.before > limit or now - self.began > 30 * limit:
            self.is_killed = True
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Ends what it began and left behind."""
        os.close(self._reports)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)


def outcomes(plan: Plan, numbers: Iterator[int], *, jobs: int, batch: int = BATCH) -> Iterator[tuple[Outcome, bool]]:
    """How every input ended, several processes at a time; and whether it had a fault among others, but none alone."""
    waiting: deque[int] = deque()
    suspects: dict[int, bool] = {}
    running: list[Child] = []
    while True:
        while len(running) < jobs:
            alone = next((number for number in suspects if all(number not in child.left for child in running)), None)
            if alone is not None:
                running.append(Child(plan, [alone], is_alone=True))
                continue
            waiting.extend(number for _, number in zip(range(batch - len(waiting)), numbers, strict=False))
            if not waiting:
                break
            running.append(Child(plan, [waiting.popleft() for _ in range(min(batch, len(waiting)))], is_alone=False))
        if not running:
            return
        is_news = False
        for child in list(running):
            found, status, usage = os.wait4(child.pid, os.WNOHANG)
            for report in () if child.is_alone else child.reports():
                is_news = True
                ended = _reported(plan, report)
                if ended is None or ended.faults:
                    suspects[report["number"]] = ended is not None
                else:
                    yield ended, False
                shutil.rmtree(plan.place / str(report["number"]), ignore_errors=True)
            if not found:
                child.watch()
                continue
            is_news = True
            running.remove(child)
            child.end()
            if child.is_alone:
                number = child.left[0]
                code = os.waitstatus_to_exitcode(status)
                ending = Ending(code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, child.is_killed)
                ended = _of_alone(plan, number, ending)
                yield ended, suspects.pop(number) and not ended.faults
                shutil.rmtree(plan.place / str(number), ignore_errors=True)
            elif child.left:
                suspects[child.left.popleft()] = False
                waiting.extendleft(reversed(child.left))
        if not is_news:
            time.sleep(0.002)


def _reported(plan: Plan, report: dict[str, Any]) -> Outcome | None:
    """How an input ended among others; None where it has to be alone."""
    folder = plan.place / str(report["number"])
    if report["code"] is None or report["peak"] > judging.PEAK:
        return None
    described = json.loads((folder / "case.json").read_text())
    ending = Ending(report["code"], report["seconds"], report["peak"])
    return judging.outcome(report["number"], folder, described, ending)


def _of_alone(plan: Plan, number: int, ending: Ending) -> Outcome:
    folder = plan.place / str(number)
    if (failed := folder / "failed").exists():
        return judging.unmade(number, failed.read_text(), ending)
    return judging.outcome(number, folder, json.loads((folder / "case.json").read_text()), ending)


def _group(pid: int) -> Iterator[tuple[str, list[str]]]:
    """The processes of a child's group, itself included: their folders in /proc, and what the system says of them."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == pid:
                yield str(path.parent), fields


def _processor_seconds(pid: int) -> float:
    """What a child and the processes that it began have used of the processors."""
    ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in _group(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def _is_waiting_for_a_processor(pid: int) -> bool:
    """Whether a thread of a child's processes could run, or waits for a disk."""
    for folder, _ in _group(pid):
        for path in Path(folder, "task").glob("*/stat"):
            with contextlib.suppress(OSError):
                if path.read_text().rpartition(")")[2].split()[0] in "RD":
                    return True
    return False


def _alone(plan: Plan, number: int) -> int:
    """The exit code of one input, with a process of its own."""
    os.setpgrp()
    folder = plan.place / str(number)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        case = _begun(plan, number)
        _limit()
        for name, value in case.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if case.before is not None:
            case.before()
        if case.process:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "quatrain", *case.words], os.environ)
        return _called(case)
    except BaseException:
        (folder / "failed").write_text(traceback.format_exc())
        return FAILED


def _together(plan: Plan, numbers: Sequence[int], reporting: int) -> int:
    """Runs inputs one after another, and reports each."""
    os.setpgrp()
    _limit()
    usual = _Surroundings()
    for number in numbers:
        before = time.process_time()
        code: int | None = None
        try:
            case = _begun(plan, number)
            if not (case.process or case.environment or case.before):
                code = _called(case)
        except BaseException:
            code = None  # It will fail alone, and say why.
        used = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        report = {"number": number, "code": code, "seconds": time.process_time() - before, "peak": max(used)}
        os.write(reporting, json.dumps(report).encode() + b"\n")
        if report["peak"] > judging.PEAK:
            break  # A process has only one peak: the rest begin anew.
        usual.restore()
    return 0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # That of the fuzzer only stops what is to come.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _begun(plan: Plan, number: int) -> Case:
    """An input in a folder of its own, which is the current one, with its streams and its home."""
    folder = plan.place / str(number)
    (folder / "work").mkdir(parents=True)
    os.chdir(folder / "work")
    kind, case = plan.case(number)
    described = {"kind": kind, "words": list(case.words), "about": case.about, "codes": sorted(case.codes)}
    described["odd"] = case.before is not None or bool(case.environment)
    (folder / "case.json").write_text(json.dumps(described))
    (folder / "in").write_bytes(case.stdin)
    for name, number_, flags in (("in", 0, os.O_RDONLY), ("out", 1, os.O_WRONLY), ("err", 2, os.O_WRONLY)):
        handle = os.open(folder / name, flags | os.O_CREAT, 0o600)
        os.dup2(handle, number_)
        os.close(handle)
    os.environ["HOME"] = str(folder)
    os.environ["QUATRAIN_CACHE"] = str(folder / "cache")
    return case


def _called(case: Case) -> int:
    """The exit code of an input in this process, with streams as Python opens them."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        try:
            os.fstat(number)
            encoding = os.environ.get("PYTHONIOENCODING") or "utf-8"
            errors = "backslashreplace" if number == 2 else "surrogateescape" if number == 0 else "strict"
            stream = open(number, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        except OSError:
            stream = None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    from quatrain.cli import main

    sys.argv = ["quatrain", *(str(word) for word in case.words)]
    try:
        code = main() if case.call is None else case.call()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        if sys.stderr is not None:
            traceback.print_exc()
        code = 1
    try:
        for stream in (sys.stderr, sys.stdout):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        code = 120  # as the interpreter ends
    return code


class _Surroundings:
    """What an input may leave changed in its process, as it was before."""

    def __init__(self) -> None:
        import torch

        self.variables = dict(os.environ)
        self.draws = random.getstate(), torch.get_rng_state()
        self.signals = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
        self.warnings = list(warnings.filters)

    def restore(self) -> None:
        """Puts everything back."""
        import torch

        if dict(os.environ) != self.variables:
            os.environ.clear()
            os.environ.update(self.variables)
        random.setstate(self.draws[0])
        torch.set_rng_state(self.draws[1])
        torch.set_default_dtype(torch.float32)
        for each, handler in self.signals.items():
            signal.signal(each, handler)
        warnings.filters[:] = self.warnings  # type: ignore[index]
        for logger in (logging.getLogger(), logging.getLogger("quatrain")):
            logger.handlers.clear()  # Those of --debug write into the streams of their input.
            logger.setLevel(logging.WARNING if logger.name == "root" else logging.NOTSET)
