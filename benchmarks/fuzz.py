"""Throws seeded inputs at every entry point and file format: none may end in a traceback, a hang or gigabytes.

    python benchmarks/fuzz.py                       # 10,000 inputs, at most 10 minutes, on 2 cores
    python benchmarks/fuzz.py --kind config         # of one kind
    python benchmarks/fuzz.py --seed 3 --only 71    # one input again, with what it printed

Every input is a command line in a folder of its own: with model folders, tokenizers, adapters, data, databases, recipes
or runs that are broken somewhere, with flags and sizes, kinds of files, streams and variables. A process that has
imported everything forks one child for each, which calls the command line; some begin an interpreter of their own. A
fault is an internal error, a traceback, more seconds or memory than the limits, an exit code that cannot be right (0
for what cannot be valid, 1 for a mistake of the user's, 2 without a word), and a terminal escape of a file's that is
printed as it is. Faults are printed with what repeats them. Ends with a JSON line, and with 1 where there were faults.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch: threads do not survive a fork
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "QUATRAIN_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # this checkout, installed or not

from fuzzing import commands, folders, generating, surroundings, tables  # noqa: E402
from fuzzing.case import Bench, Case  # noqa: E402
from fuzzing.materials import Materials  # noqa: E402

KINDS: dict[str, tuple[Callable[[Bench], Case], float]] = (
    folders.KINDS | tables.KINDS | commands.KINDS | surroundings.KINDS | generating.KINDS
)
FAULTS = ("internal_errors", "tracebacks", "hangs", "wrong_exit_codes", "over_2gb", "escapes")
SAYING = ("generate", "chat")
"""Verbs whose output is what a model says, as it says it."""
PEAK = 2 * 1024**3
FREE = 1024**3
"""What the package is told that the machine has left."""
ADDRESSES = 12 * 1024**3
"""What a child may ask the system for: beyond it an allocation fails, before the machine does."""
WRITTEN = 256 * 1024**2
OURS = (1, 3)
"""Exit codes of a child for an input that could not be made: a fault of this program."""
TAIL = 30_000


@dataclass
class Outcome:
    """How an input ended."""

    number: int
    kind: str
    words: list[str]
    about: str
    faults: dict[str, str]
    """The fault, and a word about it."""
    output: str
    seconds: float
    """Of the processors."""
    peak: int

    @property
    def group(self) -> str:
        """What faults of the same cause have in common: the last line of the error, without numbers."""
        lines = [line for line in self.output.splitlines() if "rror" in line] or self.output.splitlines() or [""]
        line = next((line for line in lines if "internal error" in line), lines[-1])
        return f"{'+'.join(self.faults)} {self.words[:1]} {''.join(c for c in line[:150] if not c.isdigit())}"


class Child:
    """One input in a process of its own, forked from this one."""

    def __init__(self, number: int, seed: int, kinds: list[str], materials: Materials, folder: Path):
        self.number, self.folder = number, folder
        (folder / "work").mkdir(parents=True)
        self.started = self.looked = time.monotonic()
        self.busy: float | None = None
        self.killed = False
        self.pid = os.fork()
        if self.pid == 0:
            try:
                code = _work(number, seed, kinds, materials, folder)
            except BaseException:
                (folder / "failed").write_text(traceback.format_exc())
                code = OURS[0]
            os._exit(code)

    def watch(self, limit: float) -> None:
        """Ends it where its time is over: its own, or that of the clock where it does nothing.

        Where others keep the processors busy, it has longer.
        """
        now = time.monotonic()
        if now - self.started < limit or now < self.looked + 1:
            return
        self.looked, before, self.busy = now, self.busy, _processor_seconds(self.pid)
        idle = before is not None and self.busy - before < 0.01
        if idle or self.busy > limit or now - self.started > 10 * limit:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)

    def clean(self) -> None:
        """Ends what it began and left behind, and removes its folder."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def outcome(self, status: int, usage: resource.struct_rusage) -> Outcome:
        """What is to be said of it, now that it has ended."""
        seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        failed = self.folder / "failed"
        if failed.exists():
            words = failed.read_text().splitlines()[-12:]
            return Outcome(self.number, "unmade", [], "", {"unmade": words[-1]}, "\n".join(words), seconds, peak)
        described = json.loads((self.folder / "case.json").read_text())
        out, err = (_tail(self.folder / name) for name in ("out", "err"))
        code = os.waitstatus_to_exitcode(status)
        debug = _is_debug(described["words"])
        faults = dict(_judged(code, described["codes"], out + err, self.killed, peak, debug))
        if not faults and not described["odd"]:
            faults = dict(_judged_words(code, out, err, described["words"]))
        words, about = described["words"], described["about"]
        return Outcome(self.number, described["kind"], words, about, faults, out + err, seconds, peak)


def _processor_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return file.read().decode("utf-8", "replace")


def _is_debug(words: list[str]) -> bool:
    """Whether a traceback is what was asked for."""
    return "--debug" in (words[: words.index("--")] if "--" in words else words)


def _judged(code: int, right: list[int], output: str, hung: bool, peak: int, debug: bool) -> Iterator[tuple[str, str]]:
    """The faults of an input that ended so."""
    if peak > PEAK:
        yield "over_2gb", f"{peak / 1024**3:.1f} GB"
    if hung:
        yield "hangs", "killed"
        return
    if "internal error:" in output or "This is a bug in quatrain" in output:
        yield "internal_errors", "a bug, as it says itself"
        return
    if "Traceback (most recent call last)" in output and not debug:
        yield "tracebacks", "a traceback"
        return
    if code in (130, *right):
        return
    if code == 1 and ("forbids the network" in output or "cannot be reached" in output):
        return  # a name that may be that of a model on the hub
    said = f"ended with {code}; right: {' or '.join(map(str, sorted(right)))}"
    yield ("internal_errors" if code < 0 else "wrong_exit_codes"), said


def _judged_words(code: int, out: str, err: str, words: list[str]) -> Iterator[tuple[str, str]]:
    """Faults of what was printed by an input whose streams are as usual."""
    if code > 0 and not out.strip() and not err.strip():
        yield "wrong_exit_codes", f"ended with {code} without a word"
    if "\x1b" in err or ("\x1b" in out and words[0] not in SAYING):
        yield "escapes", "a terminal would obey what a file says"


def _work(number: int, seed: int, kinds: list[str], materials: Materials, folder: Path) -> int:
    """The child's side: makes the input, and calls the command line with it."""
    os.setsid()
    os.chdir(folder / "work")
    draw = random.Random(f"{seed}:{number}")
    kind = draw.choices(kinds, [KINDS[name][1] for name in kinds])[0]
    case = KINDS[kind][0](Bench(draw, materials))
    described = {"kind": kind, "words": list(case.words), "about": case.about, "codes": sorted(case.codes)}
    described["odd"] = case.before is not None or bool(case.environment)
    (folder / "case.json").write_text(json.dumps(described))
    (folder / "in").write_bytes(case.stdin)
    for name, number_, flags in (("in", 0, os.O_RDONLY), ("out", 1, os.O_WRONLY), ("err", 2, os.O_WRONLY)):
        os.dup2(os.open(folder / name, flags | os.O_CREAT, 0o600), number_)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["HOME"] = str(folder)
    os.environ["QUATRAIN_CACHE"] = str(folder / "cache")
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
    return _called([str(word) for word in case.words])


def _called(words: list[str]) -> int:
    """The exit code of the command line in this process, with streams as Python opens them."""
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

    sys.argv = ["quatrain", *words]
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        if sys.stderr is not None:
            traceback.print_exc()
        code = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        code = 120  # as the interpreter ends
    return code


def _imported() -> None:
    """Everything that an input may need, so that no child imports it."""
    import pyarrow.parquet  # noqa: F401

    import quatrain
    from quatrain.planning import machine

    # The machine of the inputs: what would fill it is to be refused before it is allocated.
    machine.available_memory = lambda device="cpu": FREE  # type: ignore[assignment]
    for module in pkgutil.walk_packages(quatrain.__path__, "quatrain."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import torch

    torch.set_num_threads(1)
    if torch.get_num_interop_threads() != 1:  # It can be set once.
        torch.set_num_interop_threads(1)


def _in_a_child(call: Callable[[], object]) -> None:
    """Calls something in a process of its own, whose threads and caches are gone with it."""
    pid = os.fork()
    if pid == 0:
        try:
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("the valid things could not be made; see above")


def _made(folder: Path) -> Materials:
    """The valid things, and a finished run."""
    folder.mkdir()
    materials = Materials(folder)

    def make() -> None:
        from quatrain.cli import main

        materials.make()
        os.chdir(folder)
        if main(["run", "tiny.toml", "--quiet"]):
            raise RuntimeError("the recipe did not run")

    _in_a_child(make)
    return materials.load()


def _warmed(materials: Materials) -> None:
    """Calls some verbs in this process, so that what is prepared at the first use is ready."""
    from quatrain.cli import main

    models = materials.path("models")
    calls = [["generate", str(models / name), "the cat", "--max-new-tokens", "2"] for name in ("llama", "t5", "nf4")]
    calls += [["inspect", str(models / "bert"), "--text", "the cat", "--next"], ["plan", str(models / "gpt2")]]
    calls += [["generate", str(models / "adapter-lora"), "x", "--num-beams", "2", "--max-new-tokens", "2"]]
    calls += [["check", str(materials.path("tiny.toml")), "--toml"], ["chat", str(models / "llama")], ["--help"]]
    calls += [["evaluate", str(models / "classifier"), str(materials.path("data", "labelled.jsonl"))], ["nosuch"]]
    calls += [
        ["evaluate", str(models / "llama"), str(materials.path("data", f"{name}.jsonl"))] for name in ("chat", "text")
    ]
    streams = sys.stdin, sys.stdout, sys.stderr
    with open(os.devnull) as nothing, open(os.devnull, "w") as nowhere:
        try:
            sys.stdin, sys.stdout, sys.stderr = nothing, nowhere, nowhere
            for words in calls:
                main(words)
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
    if (count := threading.active_count()) > 1:
        raise SystemExit(f"{count} threads are left, which a fork would not take along")


def outcomes(given: argparse.Namespace, place: Path, *, until: float) -> Iterator[Outcome]:
    """Every input, several at a time, until the time is over."""
    materials = _made(place / "materials")
    _warmed(materials)
    kinds = [name for name in KINDS if not given.kind or name in given.kind]
    numbers = iter(given.only or range(given.inputs))
    gc.collect()
    gc.freeze()
    running: dict[int, Child] = {}
    over = False
    while True:
        while len(running) < given.jobs and not over:
            number = next(numbers, None)
            if number is None or time.monotonic() > until:
                over = True
                break
            child = Child(number, given.seed, kinds, materials, place / str(number))
            running[child.pid] = child
        if not running:
            return
        ended = False
        for pid, child in list(running.items()):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                ended = True
                del running[pid]
                yield child.outcome(status, usage)
                child.clean()
            else:
                child.watch(given.limit)
        if not ended:
            time.sleep(0.001)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="no input is begun after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only of this kind; several times")
    parser.add_argument("--only", type=int, action="append", metavar="N", help="only input N, with what it printed")
    parser.add_argument("--jobs", type=int, default=2, help="inputs at a time")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of one input; beyond them it hangs")
    parser.add_argument("--faults", type=Path, help="also write every fault into this file, as JSON lines")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Throws the inputs, prints every fault with what repeats it, and ends with a JSON line."""
    given = _parser().parse_args(argv)
    started = time.monotonic()
    _imported()
    counts, kinds, groups, busy = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    slowest: list[tuple[float, int, str]] = []
    with tempfile.TemporaryDirectory(prefix="quatrain-fuzz-", ignore_cleanup_errors=True) as place:
        for outcome in outcomes(given, Path(place), until=started + given.minutes * 60):
            counts["inputs"] += 1
            kinds[outcome.kind] += 1
            busy[outcome.kind] += outcome.seconds  # type: ignore[assignment]
            slowest = sorted([*slowest, (outcome.seconds, outcome.number, outcome.kind)], reverse=True)[:5]
            counts.update(list(outcome.faults))
            if outcome.faults:
                groups[outcome.group] += 1
                _print(outcome, given, again=groups[outcome.group] > 3)
            elif given.only:
                print(f"{outcome.kind}: {outcome.about}\nquatrain {outcome.words}\n{outcome.output}\nno fault")
    for group, count in groups.most_common():
        print(f"{count:5} {group}", file=sys.stderr)
    means = ", ".join(f"{kind} {seconds / kinds[kind]:.2f}" for kind, seconds in busy.most_common())
    print(f"seconds of the processors: {sum(busy.values()):.0f}; an input of {means}", file=sys.stderr)
    print(f"the slowest: {'; '.join(f'{each[0]:.1f} s {each[2]} {each[1]}' for each in slowest)}", file=sys.stderr)
    line: dict[str, Any] = {"benchmark": "fuzz", "inputs": counts["inputs"]} | {name: counts[name] for name in FAULTS}
    if counts["unmade"]:
        line["unmade"] = counts["unmade"]  # a fault of this program
    line |= {"seconds": round(time.monotonic() - started, 1), "seed": given.seed, "kinds": dict(sorted(kinds.items()))}
    print(json.dumps(line))
    return int(any(counts[name] for name in (*FAULTS, "unmade")))


def _print(outcome: Outcome, given: argparse.Namespace, *, again: bool) -> None:
    """A fault, and how to repeat it; of one whose like was shown before, a line."""
    kinds = "".join(f" --kind '{name}'" for name in given.kind or ())
    repeat = f"--seed {given.seed}{kinds} --only {outcome.number}"
    named = ", ".join(f"{name} ({about})" for name, about in outcome.faults.items())
    print(f"{named}: {repeat}  [{outcome.kind}]")
    if given.faults:
        with given.faults.open("a") as file:
            file.write(json.dumps(vars(outcome) | {"repeat": repeat}) + "\n")
    if not again:
        print(f"  {outcome.about!a}\n  quatrain {' '.join(map(ascii, outcome.words))}"[:1500])
        for each in outcome.output.splitlines()[-(60 if given.only else 6) :]:
            print(f"  | {each[:300]!a}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
