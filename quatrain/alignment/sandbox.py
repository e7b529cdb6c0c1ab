"""Runs Python code that a model wrote, with its tests, in a process of its own.

The process has limits on wall time, processor time, memory and the size of files, an empty temporary folder as its
working directory and home, none of this process's environment, and no network where the system allows it: on Linux a
new network namespace, elsewhere (or where namespaces are forbidden) an audit hook that refuses sockets, which code that
means to can get round.

It is not a security boundary. The code runs as the same user: it can read every file that you can read, write where you
may write, start processes, and cheat its tests (redefine what they call, or compare equal to everything). Train on code
from untrusted models and prompts inside a container or a virtual machine without credentials.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from quatrain.core.errors import InputError

MAX_REPORT = 100_000
"""Most bytes of a report that are read."""

CHILD = r"""
import json, os, sys
given = json.loads(sys.stdin.buffer.read())
report = os.dup(given["report"])
os.close(given["report"])
os.set_inheritable(report, False)
network = False
try:
    if sys.platform == "linux":
        import ctypes
        # CLONE_NEWUSER | CLONE_NEWNET: a namespace without any network device.
        network = ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000) == 0
except Exception:
    pass
if not network:
    def refuse(event, _):
        if event.startswith("socket."):
            raise PermissionError("no network")
    sys.addaudithook(refuse)
try:
    import resource
    for name, limit in (("RLIMIT_CPU", given["seconds"]), ("RLIMIT_AS", given["memory"]), ("RLIMIT_CORE", 0),
                        ("RLIMIT_FSIZE", given["file"])):
        most = resource.getrlimit(getattr(resource, name))[1]
        limit = int(limit) if most == resource.RLIM_INFINITY else min(int(limit), most)
        resource.setrlimit(getattr(resource, name), (limit, limit))
except Exception:
    pass
sys.stdin = open(os.devnull)
space = {"__name__": "__main__"}
result = {"token": given["token"], "isolated": network, "passed": [], "error": ""}
def why(error):
    return (type(error).__name__ + ": " + str(error))[:500]
try:
    exec(compile(given["code"], "answer.py", "exec"), space)
    for test in given["tests"]:
        try:
            exec(compile(test, "test.py", "exec"), space)
            result["passed"].append(True)
        except BaseException as error:
            result["passed"].append(False)
            result["error"] = result["error"] or why(error)
except BaseException as error:
    result["error"] = why(error)
os.write(report, json.dumps(result).encode())
os._exit(0)
"""


@dataclass(frozen=True)
class Limits:
    """What the code may use: wall time in seconds, memory and the largest file in bytes."""

    seconds: float = 5.0
    memory: int = 512 * 2**20
    file: int = 10 * 2**20


@dataclass(frozen=True)
class CodeResult:
    """Which tests passed; `error` is the first exception, or why the code gave no report. `isolated` tells whether the
    system took the network away (a namespace), rather than only the audit hook."""

    passed: tuple[bool, ...]
    error: str = ""
    isolated: bool = False

    @property
    def share(self) -> float:
        """The share of the tests that passed."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


def run_code(code: str, tests: Sequence[str], limits: Limits | None = None) -> CodeResult:
    """Run code and then its tests, statements such as `assert add(1, 2) == 3`, in one process of its own.

    A test passes if it raises nothing. Code that does not end in time, dies or reports nothing passes none. Raises
    InputError on Windows, which has no such limits.
    """
    if os.name != "posix":
        raise InputError("Code can be run with limits on Linux and macOS only.")
    limits = limits or Limits()
    failed = (False,) * len(tests)
    reader, writer = os.pipe()
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="quatrain-code-") as folder:
        given = {
            "code": code,
            "tests": list(tests),
            "report": writer,
            "token": token,
            "seconds": max(1, round(limits.seconds + 1)),
            "memory": limits.memory,
            "file": limits.file,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        late = False
        try:
            process.communicate(json.dumps(given).encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)
    with os.fdopen(reader, "rb") as file:
        os.set_blocking(file.fileno(), False)
        report = file.read(MAX_REPORT) or b""
    if late:
        return CodeResult(failed, f"stopped after {limits.seconds:g} s")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        result = json.loads(report)
        passed = tuple(bool(each) for each in result["passed"])
        if secrets.compare_digest(str(result["token"]), token):
            return CodeResult(
                (*passed, *failed[len(passed) :])[: len(tests)], result["error"], bool(result["isolated"])
            )
    return CodeResult(failed, f"ended without a report (exit code {process.returncode})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that it started, unless these have left its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def run_all(
    jobs: Sequence[tuple[str, Sequence[str]]], limits: Limits | None = None, workers: int = 4
) -> list[CodeResult]:
    """The results of several pairs of code and tests, at most `workers` at a time."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(lambda job: run_code(job[0], job[1], limits), jobs))
