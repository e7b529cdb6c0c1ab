"""What the benchmarks share: timing in turns, processes that wait for theirs, the machine's description, the JSON line.

Each benchmark measures this checkout, installed or not, and runs ours and the peer in turns, so that a noisy moment
of the machine falls on both.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def parser(text: str | None) -> argparse.ArgumentParser:
    """A command line with the benchmark's docstring and `--quick`."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; its figures mean nothing")
    return made


def clock_of(processor_time: bool) -> Callable[[], float]:
    """The clock, or the time of this process's threads alone: on a busy machine a clock measures the others too."""
    return time.process_time if processor_time else time.perf_counter


def require(module: str, extra: str = "hf") -> Any:
    """Imports a peer; ends the program with what to install where it is absent."""
    if importlib.util.find_spec(module) is None:
        raise SystemExit(f"This compares with {module}, which is not installed: pip install 'quatrain[{extra}]'")
    found = importlib.import_module(module)
    if module == "transformers":
        found.utils.logging.disable_progress_bar()
        found.utils.logging.set_verbosity_error()
    return found


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, smallest and largest of several runs, and how many there were."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios: of 2 and 1/2 it is 1."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def seconds_of(call: Callable[[], Any], times: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, over `times` of them in a row."""
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


def in_turns(calls: Mapping[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """What each call returns, `repeat` times; every round has one turn of each, the order turned around each time."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeat):
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(calls[name]())
    return found


def continue_greedily(model: Any, prompts: Any, new: int) -> None:
    """transformers' model continues prompts (B, T) by `new` tokens: the plain loop, without what `generate` adds."""
    import torch

    with torch.inference_mode():
        given: dict[str, Any] = {"use_cache": True}
        name, tokens = "input_ids", prompts
        if model.config.is_encoder_decoder:
            given["encoder_outputs"] = model.get_encoder()(prompts)
            name, tokens = "decoder_input_ids", prompts.new_full((len(prompts), 1), model.config.decoder_start_token_id)
        for _ in range(new):
            output = model(**given, **{name: tokens})
            tokens = output.logits[:, -1:].argmax(-1)
            given["past_key_values"] = output.past_key_values


def our_decoder(model: Any) -> Callable[[Any, int], Any]:
    """A function that continues prompts (B, T) by so many tokens, through the engine as a user gets it."""
    from quatrain.generation.engine import Engine, SamplingParams

    engine = Engine(model, end_ids=[])

    def run(prompts: Any, new: int) -> Any:
        params = SamplingParams(max_new_tokens=new, ignore_eos=True)
        engine.generate(prompts.tolist(), params, batch_size=len(prompts))
        return engine.statistics

    return run


def reading_rate(clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes per second that one thread reads from memory, of an array that no cache holds."""
    import torch

    data = torch.ones(64 * 1024 * 1024)
    data.sum()
    spans = []
    for _ in range(3):
        start = clock()
        data.sum()
        spans.append(clock() - start)
    return data.nbytes / min(spans)


def product_rate(dtype: Any, size: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second of the product of two square matrices."""
    import torch

    one, other = torch.randn(2, size, size).to(dtype)
    one @ other
    spans = []
    for _ in range(3):
        start = clock()
        one @ other
        spans.append(clock() - start)
    return 2 * size**3 / min(spans)


def child_environment() -> dict[str, str]:
    """The environment of a child that imports this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


LAUNCHER = """
import json, os, sys, time
report, command = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(report, False)
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawnp(command[0], command, os.environ), 0)
line = json.dumps([time.perf_counter() - start, os.waitstatus_to_exitcode(status), usage.ru_maxrss])
os.write(report, line.encode())
"""
"""Starts a command and measures it. A child's peak counts what its parent held when it was started, so the parent is
this process of a few megabytes, not the one that asks."""


def run_child(command: Sequence[str]) -> tuple[float, int | None]:
    """Runs a command to its end; returns its wall time in seconds and its peak memory in bytes (None on Windows).

    The output goes to a pipe and is shown where the command fails, which ends the benchmark.
    """
    if hasattr(os, "wait4"):
        seconds, code, peak, output = _launched(command)
    else:
        start = time.perf_counter()
        done = subprocess.run(command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seconds, code, peak, output = time.perf_counter() - start, done.returncode, None, done.stdout
    if code:
        words = output.decode(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{words}")
    return seconds, peak


def _launched(command: Sequence[str]) -> tuple[float, int, int | None, bytes]:
    """Wall time, exit code, peak memory in bytes and output of a command, as the launcher measured them."""
    reading, writing = os.pipe()
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(writing), *command]
    with os.fdopen(reading, "rb") as report:
        try:
            done = subprocess.run(launcher, env=child_environment(), pass_fds=(writing,), stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)  # fmt: skip
        finally:
            os.close(writing)
        line = report.read()
    if not line:
        return math.nan, done.returncode or 1, None, done.stdout
    seconds, code, peak = json.loads(line)
    return seconds, code, peak * (1 if sys.platform == "darwin" else 1024), done.stdout


class Worker:
    """A process of its own that measures when it is told to: its memory is its own, and it sleeps between its turns."""

    def __init__(self, script: str, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=child_environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def turn(self) -> dict[str, Any]:
        """One measurement: what the worker's `serve` function returned. Ends the benchmark where the worker failed."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker was started without pipes")
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {self.process.wait()}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def serve(measure: Callable[[], Mapping[str, Any]]) -> None:
    """The worker's side: a measurement for each line that comes. A mistake of the user's ends it with its message."""
    from quatrain.core.errors import QuatrainError

    for _ in sys.stdin:
        try:
            print(json.dumps(measure()), flush=True)
        except QuatrainError as error:
            raise SystemExit(str(error)) from None


def environment() -> dict[str, Any]:
    """Machine, threads, versions, commit, date, and the load that others put on the machine."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import quatrain

    versions = {"python": platform.python_version(), "quatrain": quatrain.__version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "device": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
        "commit": current_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def current_commit() -> str | None:
    """The commit of this checkout, marked where files have changed since; None without git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def finish(benchmark: str, ratio: float, ratio_of: str, *, quick: bool, **values: Any) -> None:
    """Prints the last line, one JSON object. `ratio_of` says what `ratio` is, above 1 where ours is ahead."""
    line = {"benchmark": benchmark, "quick": quick, "ratio": ratio, "ratio_of": ratio_of} | values | environment()
    print(json.dumps(_rounded(line)))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
