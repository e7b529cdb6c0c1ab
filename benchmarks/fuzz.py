"""Throws seeded inputs at every entry point and file format: none may end in a traceback, a hang or gigabytes.

    python benchmarks/fuzz.py                               # 10,000 inputs of all kinds, at most 10 minutes
    python benchmarks/fuzz.py --entry all --jobs 1          # 10,000 for each entry point, however long it takes
    python benchmarks/fuzz.py --entry requests --kind chat  # of one kind
    python benchmarks/fuzz.py --seed 3 --only 71            # one input again, with what it printed

Every input is a command line in a folder of its own, or a request to a server: with model folders, tokenizers,
adapters, data, databases, recipes or runs that are broken somewhere, with flags and sizes, kinds of files, streams and
variables. A process that has imported everything forks children, which run many inputs each; one that does not end as
it should is run again alone, and judged by that. A fault is an internal error, a traceback, more seconds or memory than
the limits, an exit code that cannot be right (0 for what cannot be valid, 1 for a mistake of the user's, 2 without a
word), and a terminal escape of a file's that is printed as it is. Faults are printed with what repeats them. Ends with
a JSON line, and with 1 where there were faults.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch: threads do not survive a fork
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "QUATRAIN_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # this checkout, installed or not

from fuzzing.entries import ENTRIES, KINDS, Kind  # noqa: E402
from fuzzing.judging import FAULTS, Outcome  # noqa: E402
from fuzzing.materials import FEWER, FURTHER, Materials  # noqa: E402
from fuzzing.running import BATCH, Plan, outcomes  # noqa: E402

FREE = 1024**3
"""What the package is told that the machine has left."""


def _imported(*, everything: bool) -> None:
    """Everything that an input may need, so that no child imports it; or torch alone."""
    import torch

    import quatrain
    from quatrain.planning import machine

    # The machine of the inputs: what would fill it is to be refused before it is allocated. Before others import it.
    machine.available_memory = lambda device="cpu": FREE  # type: ignore[assignment]
    from quatrain.serving import server

    # Nobody asks a server.
    server.Server.run = lambda self, sockets=None: self._socket.close()  # type: ignore[assignment]
    if everything:
        importlib.import_module("pyarrow.parquet")
    for module in pkgutil.walk_packages(quatrain.__path__, "quatrain.") if everything else ():
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
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


def _made(folder: Path, families: Sequence[str]) -> Materials:
    """The valid things; those that are there already are used again."""
    materials = Materials(folder)
    if (folder / ("index" if families else "record.jsonl")).exists():
        return materials.load()
    folder.mkdir(parents=True)

    def make() -> None:
        from quatrain.cli import main

        materials.make(families=families)
        os.chdir(folder)
        for words in FEWER if families else FURTHER:
            if main(words.split()) > 1:  # An agent whose model says nothing right ends with 1.
                raise RuntimeError(f"quatrain {words} has failed")

    _in_a_child(make)
    return materials.load()


def _warmed(materials: Materials) -> None:
    """Calls some verbs in this process, so that what is prepared at the first use is ready."""
    from quatrain.cli import main

    models = materials.path("models")
    calls = [["generate", str(models / name), "the cat", "--max-new-tokens", "2"] for name in ("llama", "t5", "nf4")]
    calls += [["inspect", str(models / "bert"), "--text", "the cat", "--next"], ["plan", str(models / "llama")]]
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


def prepared(folder: Path, families: Sequence[str] = ()) -> Materials:
    """Everything that inputs need, in this process and on the disk, before the first fork.

    `families`: models without a head of these families alone; then little is ready, sooner.
    """
    _imported(everything=not families)
    materials = _made(folder, families)
    _warmed(materials)
    gc.collect()
    gc.freeze()
    return materials


def chosen(given: argparse.Namespace) -> dict[str, dict[str, Kind]]:
    """What is drawn from, one after another: an entry point and its kinds, or all kinds together."""
    if not given.entry:
        entries = {"": KINDS}
    else:
        entries = {name: ENTRIES[name] for name in (ENTRIES if "all" in given.entry else given.entry)}
    if given.kind:
        few = {name: {kind: kinds[kind] for kind in kinds if kind in given.kind} for name, kinds in entries.items()}
        entries = {name: kinds for name, kinds in few.items() if kinds}
    return entries


class Tally:
    """What the inputs of an entry point have come to."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts, self.kinds, self.busy = Counter[str](), Counter[str](), Counter[str]()
        self.slowest: list[tuple[float, int, str]] = []
        self._started, self._used = time.monotonic(), _processor_seconds()

    def add(self, outcome: Outcome, *, is_fine_alone: bool) -> None:
        """Counts an input."""
        self.counts.update(["inputs", *outcome.faults, *(["fine_alone"] if is_fine_alone else [])])
        self.kinds[outcome.kind] += 1
        self.busy[outcome.kind] += outcome.seconds  # type: ignore[assignment]
        self.slowest = sorted([*self.slowest, (outcome.seconds, outcome.number, outcome.kind)], reverse=True)[:5]

    def line(self) -> dict[str, Any]:
        """The counts, and what they have taken until now."""
        line: dict[str, Any] = {name: self.counts[name] for name in ("inputs", *FAULTS)}
        if self.counts["unmade"]:
            line["unmade"] = self.counts["unmade"]  # a fault of this program
        line |= {"fine_alone": self.counts["fine_alone"], "seconds": round(time.monotonic() - self._started, 1)}
        line |= {"processor_seconds": round(_processor_seconds() - self._used, 1), "seed": self.seed}
        return line | {"kinds": dict(sorted(self.kinds.items()))}

    def show_times(self) -> None:
        """Prints what an input takes."""
        used = _processor_seconds() - self._used
        means = ", ".join(f"{kind} {seconds / self.kinds[kind]:.3f}" for kind, seconds in self.busy.most_common())
        each = used / max(self.counts["inputs"], 1)
        print(f"seconds of the processors: {used:.0f}, {each:.3f} an input; without forks: {means}", file=sys.stderr)
        slowest = "; ".join(f"{seconds:.1f} s {kind} {number}" for seconds, number, kind in self.slowest)
        print(f"the slowest: {slowest}", file=sys.stderr, flush=True)


def _done(log: Path | None, entry: str, seed: int) -> int:
    """How many inputs of an entry point the lines of a log count."""
    lines = log.read_text().splitlines() if log is not None and log.exists() else []
    return sum(line["inputs"] for line in map(json.loads, lines) if (line["entry"], line["seed"]) == (entry, seed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs, of each entry point that is named")
    parser.add_argument("--minutes", type=float, help="no input is begun after so many; 10 without --entry")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--entry", action="append", choices=["all", *ENTRIES], help="an entry point; several times")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only of this kind; several times")
    parser.add_argument("--only", type=int, action="append", metavar="N", help="only input N, with what it printed")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--batch", type=int, default=BATCH, help="inputs of a process")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of one input; beyond them it hangs")
    parser.add_argument("--materials", type=Path, metavar="FOLDER", help="keep the valid things there, and use them")
    parser.add_argument("--log", type=Path, help="append a line for each entry point, and skip what its lines count")
    parser.add_argument("--faults", type=Path, help="also write every fault into this file, as JSON lines")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prepares, throws the inputs, prints every fault with what repeats it, and ends with a JSON line."""
    given = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="quatrain-fuzz-", ignore_cleanup_errors=True) as folder:
        return thrown(given, prepared(given.materials or Path(folder, "materials")), Path(folder))


def thrown(given: argparse.Namespace, materials: Materials, place: Path) -> int:
    """Throws the inputs at what was prepared."""
    minutes = given.minutes or (None if given.entry else 10.0)
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))  # What has begun is counted.
    whole, groups, entries = Tally(given.seed), Counter[str](), dict[str, int]()

    def numbers(start: int) -> Iterator[int]:
        for number in given.only or range(start, given.inputs):
            if stopped or time.monotonic() > until:
                return
            yield number

    for entry, drawn in chosen(given).items():
        plan, tally = Plan(given.seed, drawn, materials, place, given.limit), Tally(given.seed)
        left = numbers(_done(given.log, entry, given.seed))
        for outcome, is_fine_alone in outcomes(plan, left, jobs=given.jobs, batch=given.batch):
            for each in (tally, whole):
                each.add(outcome, is_fine_alone=is_fine_alone)
            if outcome.faults:
                groups[outcome.group] += 1
                _print(outcome, given, entry, again=groups[outcome.group] > 3)
            elif given.only:
                print(f"{outcome.kind}: {outcome.about}\nquatrain {outcome.words}\n{outcome.output}\nno fault")
            elif is_fine_alone:
                print(f"no fault alone: --seed {given.seed} --entry '{entry}' --only {outcome.number}", flush=True)
        if entry:
            entries[entry] = tally.counts["inputs"]
            print(json.dumps({"entry": entry} | tally.line()), flush=True)
        if given.log and tally.counts["inputs"]:
            with given.log.open("a") as file:
                file.write(json.dumps({"entry": entry} | tally.line()) + "\n")
        tally.show_times()
    for group, count in groups.most_common():
        print(f"{count:5} {group}", file=sys.stderr)
    print(json.dumps({"benchmark": "fuzz"} | whole.line() | {"entries": entries}))
    return int(any(whole.counts[name] for name in (*FAULTS, "unmade")))


def _processor_seconds() -> float:
    """Of this process and of those that it began."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _print(outcome: Outcome, given: argparse.Namespace, entry: str, *, again: bool) -> None:
    """A fault, and how to repeat it; of one whose like was shown before, a line."""
    chosen = f" --entry '{entry}'" if entry else ""
    chosen += "".join(f" --kind '{name}'" for name in given.kind or ())
    repeat = f"--seed {given.seed}{chosen} --only {outcome.number}"
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
