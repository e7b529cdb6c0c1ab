"""Runs programs in forks of one process that has imported the large libraries: the imports of a program take longer
than what most tests ask of it.

A fork is a process of its own, with its folder, environment, streams, exit code and signals. What it does not repeat is
the start of an interpreter and the imports; tests of those, of terminals and of hash seeds start Python itself.
Where a system cannot fork, every program is started as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fork_client

ROOT = Path(__file__).parents[2]
QUATRAIN = ("torch", "quatrain.cli.app", "quatrain.runs.runner", "quatrain.runs.preflight", "quatrain.runs.summary",
            "quatrain.runs.stages._pretrain", "quatrain.runs.stages._finetune", "quatrain.evaluation.report",
            "quatrain.evaluation.safety.card", "quatrain.tasks.text2sql.task", "quatrain.training.trainer",
            "quatrain.training.distributed.sharded")  # fmt: skip
"""Modules that most verbs load."""
PEERS = ("transformers.models.llama.modeling_llama", "transformers.generation.utils", "datasets", "peft",
         "trl.trainer.dpo_trainer", "sklearn.linear_model")  # fmt: skip
"""Libraries that benchmarks load beside them."""


class Program:
    """A program that runs, or has run. What it writes is in the files 1 and 2 of its folder, as it comes."""

    def __init__(self, pid: int, folder: Path, ended: Callable[[float], int | None]):
        self.pid, self._folder, self._ended = pid, folder, ended
        self._code: int | None = None

    def output(self) -> str:
        """What the program has written to its standard output so far."""
        return (self._folder / "1").read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        """What it has written to its standard error so far."""
        return (self._folder / "2").read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self._code is None:
            self._code = self._ended(0)
        return self._code

    def wait(self, seconds: float = 300) -> int:
        """The exit code. After so many seconds the program is killed, which raises TimeoutExpired."""
        if self._code is None:
            self._code = self._ended(seconds)
        if self._code is None:
            (os.killpg if hasattr(os, "fork") else os.kill)(self.pid, signal.SIGKILL)  # its children too
            self._code = self._ended(60)
            raise subprocess.TimeoutExpired("a program of a test", seconds, self.output(), self.errors())
        return self._code

    def kill(self) -> None:
        """SIGKILL to the program alone; nothing where it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Server:
    """A process that has imported `modules`, and runs programs in forks."""

    def __init__(self, modules: Sequence[str]):
        self._address = str(Path(tempfile.mkdtemp(dir=_place())) / "socket")
        self.python = python_beside(self._address)
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address, *modules],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(self.close)
        assert self._process.stdout is not None and self._process.stdout.readline(), "the imports have failed"

    def start(self, task: Mapping[str, Any], folder: Path) -> Program:
        """Starts a program with the streams 0, 1 and 2 of a folder."""
        with open(folder / "0", "rb") as given, open(folder / "1", "ab") as out, open(folder / "2", "ab") as errors:
            connection = fork_client.ask(self._address, task, [each.fileno() for each in (given, out, errors)])

        def ended(seconds: float) -> int | None:
            return fork_client.number(connection) if select.select([connection], [], [], seconds)[0] else None

        return Program(fork_client.number(connection), folder, ended)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@functools.cache
def server(modules: tuple[str, ...]) -> Server:
    """The server of this process with these modules; it starts when it is first used."""
    return Server(modules)


def python() -> str:
    """What `sys.executable` has to be where the tested code starts it: what that runs is a fork."""
    return server(QUATRAIN).python if hasattr(os, "fork") else sys.executable


def python_beside(address: str) -> str:
    """The path of the Python that asks at an address."""
    return str(Path(address).parent / "python")


@functools.cache
def _place() -> Path:
    folder = tempfile.mkdtemp(prefix="quatrain-forks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def start(
    words: Sequence[str],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    input: str = "",
    processes: int = 1,
    modules: tuple[str, ...] = QUATRAIN,
) -> Program:
    """Starts `python WORDS` (`-m MODULE …`, `-c CODE …` or `SCRIPT …`). What it starts itself is forked too.

    With `processes` so many run it together, in the environment that torchrun gives them; where one fails, the others
    are ended.
    """
    folder = Path(tempfile.mkdtemp(dir=_place()))
    (folder / "0").write_text(input, encoding="utf-8")
    environment = dict(os.environ if env is None else env)
    if hasattr(os, "fork"):
        task = {"words": [*words], "cwd": str(cwd or os.getcwd()), "env": environment, "processes": processes}
        return server(modules).start(task, folder)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with open(folder / "0", "rb") as given, open(folder / "1", "wb") as out, open(folder / "2", "wb") as errors:
        command = [sys.executable, *(launcher if processes > 1 else []), *words]
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=given, stdout=out, stderr=errors)

    def ended(seconds: float) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Program(process.pid, folder, ended)


def run(words: Sequence[str], *, seconds: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program as `start` does, to its end; its output as text."""
    program = start(words, **options)
    return subprocess.CompletedProcess([*words], program.wait(seconds), program.output(), program.errors())


# The process that forks


def serve(address: str, modules: Sequence[str]) -> int:
    """Imports the modules, then runs a program for each one that asks; returns in a fork, with its exit code."""
    for name in ("multiprocessing.spawn", *modules):  # what multiprocessing starts is Python itself
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    client = [sys.executable, "-I", "-S", fork_client.__file__, address, sys.executable]
    sys.executable = python_beside(address)
    Path(sys.executable).write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
    Path(sys.executable).chmod(0o700)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            if 0 in select.select([listener, 0], [], [])[0]:
                return 0  # the tests have ended
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    task = json.loads(connection.makefile().readline())
    if child := os.fork():
        watch(child, connection)
    connection.close()
    return finish(task, streams)


def watch(child: int, connection: socket.socket) -> None:
    """Tells the number and the exit code of a program to who has asked, without whom it is killed."""

    def kill() -> None:
        if not connection.recv(1):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)

    connection.sendall(f"{child}\n".encode())
    threading.Thread(target=kill, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def finish(task: Mapping[str, Any], streams: Sequence[int]) -> int:
    """Runs a program in the folder, the environment and the streams of its task; the exit code."""
    os.setsid()
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["env"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    code = together(task["words"], task["processes"]) if task["processes"] > 1 else execute(task["words"])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code


def together(words: list[str], count: int) -> int:
    """Runs a program by several processes; where one fails, the others are ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            return execute(words)
        running.append(child)
    first = 0
    while running:
        child, status = os.wait()
        running.remove(child)
        if status and not first:
            first = os.waitstatus_to_exitcode(status)
            for each in running:
                os.kill(each, signal.SIGTERM)
    return first


def execute(words: list[str]) -> int:
    """Runs what `python WORDS` runs in this process; the exit code."""
    first, *rest = words
    search = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if first == "-c":
            sys.path[:0], sys.argv = search, ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        elif first == "-m":
            sys.path[:0], sys.argv = search, list(rest)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[:0], sys.argv = [os.path.dirname(first), *search[1:]], list(words)
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.exit(serve(sys.argv[1], sys.argv[2:]))
