"""Runs Python code that a model wrote, in a process of its own that the system confines.

`confine` says with what: on Linux a file tree of its own with one empty folder, no network device, no other process, a
user that exists nowhere else, limits, Landlock and a filter of system calls. What a system does not offer is not
enforced, and `Sandbox.missing` names it, so that it can be said at start. Time and output are limited from outside.

The code is Python run by Python: no interpreter of ours, and no check of its text. A fault in the kernel would still
let it out; run code of people who may attack you in a virtual machine of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError

START = 60.0
"""Seconds in which the process must be ready."""
MAX_MESSAGE = 1_000_000
"""Most bytes of a message from the code's process."""
PARTS = {
    "files": "files outside its folder are out of reach",
    "network": "no network",
    "processes": "no further processes",
    "signals": "no signals to other processes",
    "memory": "a limit of memory",
    "time": "a limit of processor time",
    "file size": "a limit of each file's size",
    "disk": "a limit of all files together",
    "privileges": "no privileges",
    "system calls": "only the system calls that a computation needs",
}
"""What a sandbox enforces, where the system offers it; wall time, output and environment always are."""

CHILD = r"""
import importlib.util, io, json, os, sys, traceback
requests = os.fdopen(int(sys.argv[1]), "rb")
report = int(sys.argv[2])
given = json.loads(requests.readline())
spec = importlib.util.spec_from_file_location("confine", given["confine"])
confine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(confine)
def send(message):
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(report, data):]
send({"ready": confine.confine(given["spec"])})
sys.argv = ["answer.py"]
def why(error):
    return (type(error).__name__ + ": " + str(error))[:500]
class Answered(BaseException):
    pass
def function(name):
    def call(**arguments):
        send({"call": name, "arguments": arguments})
        answer = json.loads(requests.readline())
        if answer["failed"]:
            raise RuntimeError(answer["result"])
        return answer["result"]
    call.__name__ = name
    return call
def final_answer(value):
    send({"answer": value if isinstance(value, str) else json.dumps(value, default=str)})
    raise Answered
space = {"__name__": "__main__", "final_answer": final_answer}
space.update((name, function(name)) for name in given["functions"])
for line in requests:
    request = json.loads(line)
    result = {"done": request["token"], "passed": [], "error": ""}
    try:
        exec(compile(request["code"], "answer.py", "exec"), space)
        for test in request["tests"]:
            try:
                exec(compile(test, "test.py", "exec"), space)
                result["passed"].append(True)
            except BaseException as error:
                result["passed"].append(False)
                result["error"] = result["error"] or why(error)
    except Answered:
        pass
    except BaseException as error:
        result["error"] = why(error)
        if request["shows"]:
            tail = traceback.extract_tb(error.__traceback__)[1:]
            places = ["line %d" % each.lineno for each in tail if each.filename == "answer.py"]
            result["error"] += " (%s)" % ", ".join(places) if places else ""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        pass
    send(result)
os._exit(0)
"""


@dataclass(frozen=True)
class Limits:
    """What the code may use: wall time of a block in seconds; memory, the largest file, all files and the output in
    bytes; processes, of which 1 is its own."""

    seconds: float = 5.0
    memory: int = 512 * 2**20
    file: int = 10 * 2**20
    disk: int = 32 * 2**20
    output: int = 20_000
    processes: int = 1


@dataclass(frozen=True)
class CodeResult:
    """Which tests passed; `error` is the first exception, or why the code gave no report. `output` is what it printed,
    `answer` the value of `final_answer`. `isolated` tells whether the system took the network away, rather than only an
    audit hook."""

    passed: tuple[bool, ...] = ()
    error: str = ""
    isolated: bool = False
    output: str = ""
    answer: str | None = None
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """The share of the tests that passed."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


Function = Callable[[str, Mapping[str, Any]], tuple[str, bool]]
"""Answers a call of the code by name and arguments: the result, and whether it failed."""


@dataclass
class Sandbox:
    """A confined process that runs blocks of code one after the other; names that they define stay.

    `functions` are names that the code can call; `answer` gives their results, in this process. A block that is too
    slow or too loud ends the process, and the next one starts with a new one. Raises InputError on Windows, which has
    no such limits.
    """

    limits: Limits = field(default_factory=Limits)
    functions: Collection[str] = ()
    answer: Function | None = None
    without: Collection[str] = ()
    """Parts that are left out, to test the others: "namespaces", "landlock", "seccomp"."""
    enforced: dict[str, str] = field(default_factory=dict, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if os.name != "posix":
            raise InputError("Code can be run with limits on Linux and macOS only.")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def missing(self) -> list[str]:
        """What is not enforced here, in words. Starts the process if there is none."""
        if self._process is None:
            self._start()
        return [text for part, text in PARTS.items() if part not in self.enforced]

    def run(self, code: str, tests: Sequence[str] = (), *, shows: bool = True) -> CodeResult:
        """Run a block, then its tests, statements such as `assert add(1, 2) == 3`.

        A test passes if it raises nothing. Code that does not end in time, dies or reports nothing passes none. `shows`
        adds the line of an exception.
        """
        started = time.monotonic()
        failed = (False,) * len(tests)
        if self._process is None and not self._start():
            return CodeResult(failed, "the sandbox did not start")
        token = secrets.token_hex(16)
        self._send({"code": code, "tests": list(tests), "token": token, "shows": shows})
        messages, output, fault = self._listen(token, started)
        answer = next((each["answer"] for each in messages if isinstance(each.get("answer"), str)), None)
        seconds, isolated = time.monotonic() - started, self.enforced.get("network") in ("namespace", "seccomp")
        last = messages[-1] if messages else {}
        if fault or last.get("done") != token:
            code_of = self._end()
            return CodeResult(failed, fault or f"ended without a report (exit code {code_of})", isolated, output)
        given = last.get("passed")
        passed = tuple(map(bool, given)) if isinstance(given, list) else ()
        passed = (*passed, *failed[len(passed) :])[: len(tests)]
        return CodeResult(passed, str(last.get("error") or ""), isolated, output, answer, seconds)

    def close(self) -> None:
        """End the process, and remove its folder."""
        self._end()

    def _start(self) -> bool:
        self._folder = tempfile.mkdtemp(prefix="quatrain-code-")
        requests, self._requests = os.pipe()
        self._report, report = os.pipe()
        output = subprocess.PIPE if self.limits.output else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD, str(requests), str(report)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env={"HOME": self._folder, "TMPDIR": self._folder, "LANG": "C.UTF-8"},
            pass_fds=(requests, report),
            start_new_session=True,
        )
        os.close(requests)
        os.close(report)
        os.chmod(self._folder, 0o777)  # Without a tree of its own, a user that exists nowhere else writes here.
        os.set_blocking(self._report, False)
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
        self._rest = b""
        confined = Path(__file__).with_name("confine.py")
        self._send({"confine": str(confined), "spec": self._spec(), "functions": sorted(self.functions)})
        messages, _, _ = self._listen(None, time.monotonic())
        ready = messages[-1].get("ready") if messages else None
        if not isinstance(ready, dict):
            self._end()
            return False
        self.enforced = {part: str(how) for part, how in ready.items() if part in PARTS}
        return True

    def _spec(self) -> dict[str, Any]:
        limits = self.limits
        return {
            "folder": self._folder,
            "read": _readable(),
            "seconds": max(1, round(limits.seconds * 10 + 1)),
            "memory": limits.memory,
            "file": limits.file,
            "disk": limits.disk,
            "processes": limits.processes,
            "without": list(self.without),
        }

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # A process that has ended is noticed by its silence.
            data = json.dumps(message).encode() + b"\n"
            while data:
                data = data[os.write(self._requests, data) :]

    def _listen(self, token: str | None, started: float) -> tuple[list[dict[str, Any]], str, str]:
        """Messages up to the report `token`, or the first one; what was printed; and why the process must end."""
        if self._process is None:
            return [], "", ""
        deadline = started + (START if token is None else self.limits.seconds)
        messages: list[dict[str, Any]] = []
        printed, size, fault = [], 0, ""
        out = None if self._process.stdout is None else self._process.stdout.fileno()
        open_ends = {self._report, *([] if out is None else [out])}
        finished = False
        while self._report in open_ends and not fault:
            wait = 0.0 if finished else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(open_ends), [], [], wait)
            if not ready:
                fault = "" if finished else f"stopped after {self.limits.seconds:g} s"
                break
            for place in ready:
                data = _read(place)
                if not data:
                    open_ends.discard(place)
                elif place == out:
                    room = self.limits.output - size
                    size += len(data)
                    printed.append(data[: max(0, room)])
                    if size > 10 * self.limits.output + 100_000:
                        fault = f"stopped: it printed more than {self.limits.output:,} bytes without end"
                else:
                    began = time.monotonic()
                    done, fault = self._take(data, messages, token)
                    finished = finished or done
                    deadline += time.monotonic() - began  # The time of functions is not the code's.
            if finished and out is None:
                break
        text = b"".join(printed).decode("utf-8", "replace")
        if size > self.limits.output:
            text += f"\n[… {size - self.limits.output:,} more bytes were printed …]"
        return messages, text, fault

    def _take(self, data: bytes, messages: list[dict[str, Any]], token: str | None) -> tuple[bool, str]:
        """Read messages and answer calls; whether the last one ends the block, and why the process must end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_MESSAGE:
            return False, "stopped: a message without end"
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                return False, "stopped: the process sent what is no message"
            if "call" in message:
                self._send(self._answered(message))
                continue
            messages.append(message)
            if token is None or message.get("done") == token:
                return True, ""
        return False, ""

    def _answered(self, message: Mapping[str, Any]) -> dict[str, Any]:
        name, arguments = message.get("call"), message.get("arguments")
        if self.answer is None or name not in self.functions or not isinstance(arguments, dict):
            return {"result": f"there is no function {name!r}", "failed": True}
        result, failed = self.answer(str(name), arguments)
        return {"result": result, "failed": failed}

    def _end(self) -> int | None:
        """End the process and those that it started; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.poll() is None:
                os.close(self._requests)
                self._requests = -1
                process.wait(0.01)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for place in (self._requests, self._report):
            with contextlib.suppress(OSError):
                os.close(place)
        if process.stdout is not None:
            process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return process.returncode


def _read(place: int) -> bytes:
    try:
        return os.read(place, 65536)
    except BlockingIOError:
        return b""
    except OSError:
        return b""


@cache
def _readable() -> list[str]:
    """The paths that Python needs: its own, those of its packages, and the system's libraries."""
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    system = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
    paths = [*own, *(path for path in system if not os.path.islink(path)), os.path.dirname(os.path.realpath(__file__))]
    return sorted(path for path in dict.fromkeys(paths) if os.path.exists(path) and path not in ("/", "/usr/bin"))


@cache
def missing_here() -> tuple[str, ...]:
    """What a sandbox cannot enforce on this machine, in words."""
    with Sandbox() as sandbox:
        return tuple(sandbox.missing)


def run_code(code: str, tests: Sequence[str], limits: Limits | None = None) -> CodeResult:
    """Run code and then its tests in one process of its own; as `Sandbox.run`."""
    with Sandbox(limits or Limits()) as sandbox:
        return sandbox.run(code, tests, shows=False)


def run_all(
    jobs: Sequence[tuple[str, Sequence[str]]], limits: Limits | None = None, workers: int = 4
) -> list[CodeResult]:
    """The results of several pairs of code and tests, at most `workers` at a time."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(lambda job: run_code(job[0], job[1], limits), jobs))
