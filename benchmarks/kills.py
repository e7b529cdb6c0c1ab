"""Kills commands at random moments and gives them again: they must end as the command that was left alone.

    python benchmarks/kills.py --kills 200                       # of four works in equal parts
    python benchmarks/kills.py --kills 20 --works indexing       # of one

The works are the files of `killing/`: a trainer, a recipe with PPO, a curation, an index. A process that has imported
everything forks one child for each run. Half of the kills come at a random moment by the clock; the others just before
a random change of a file or folder (opened for writing, renamed, removed), so that the moments between two renames have
their share. Each trial is a chain: what a kill left is killed again, up to four times. What each kill left is opened by
a reader, who must see the state before or after the command, and is given the same command twice, from two copies: the
weights, metrics, documents, vectors and answers must be equal, bit for bit, to those of the command that nobody killed,
and no other file may be left. Ends with a JSON line.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch: threads do not survive a fork
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "QUATRAIN_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # this checkout, installed or not

from common import finish, parser  # noqa: E402
from killing import Work, works  # noqa: E402
from killing.child import Child, Kill  # noqa: E402

CHAIN = 4
"""How often what a kill left is killed again."""


@dataclass(frozen=True)
class Whole:
    """A variant of a work that nobody killed: its result, its seconds, and what a reader sees before and after."""

    result: dict[str, Any]
    seconds: float
    seen: tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """A kill: what the command was at, and what was wrong with what it left."""

    phase: str
    faults: tuple[str, ...]


class Trials:
    """The trials of one work, in a folder of their own."""

    def __init__(self, work: Work, place: Path, seed: int):
        self.work, self.place, self.random = work, place, random.Random(f"{seed}:{work.name}")
        place.mkdir()
        work.make(place)
        self.whole = {variant: self._whole(variant) for variant in work.variants}

    def _folder(self, name: str, variant: str) -> Path:
        folder = self.place / name / "target"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir()
        self.work.start(folder, variant)
        return folder

    def _whole(self, variant: str) -> Whole:
        """Twice: the second run is of a finished target, whose reader sees the state after the command."""
        folder = self._folder("whole", variant)
        results, seconds = [], []
        for _ in range(2):
            started = time.monotonic()
            child = Child(self.work, folder, variant, reads=True)
            result = child.end()
            seconds.append(time.monotonic() - started)
            if result is None:
                raise SystemExit(f"{self.work.name} failed by itself:\n{child.words()}")
            results.append(result)
        first, second = results
        if (first["outcome"], first["files"]) != (second["outcome"], second["files"]):
            raise SystemExit(f"{self.work.name}: the same command again, of what is finished, ends otherwise")
        return Whole(first, seconds[0], (first["seen"], second["seen"]))

    def run(self, kills: int) -> Iterator[Trial]:
        """So many kills."""
        done = chains = 0
        while done < kills:
            variant = self.work.variants[chains % len(self.work.variants)]
            chains += 1
            folder = self._folder("killed", variant)
            for _ in range(CHAIN):
                phase = Child(self.work, folder, variant, kill=self._moment(self.whole[variant])).die()
                if phase is None or done == kills:
                    break
                done += 1
                yield Trial(phase, tuple(self._faults(folder, variant)))

    def _moment(self, whole: Whole) -> Kill:
        if self.random.random() < 0.5:
            return Kill(seconds=self.random.uniform(0.0, whole.seconds))
        return Kill(change=self.random.randint(1, whole.result["changes"]))

    def _faults(self, folder: Path, variant: str) -> Iterator[str]:
        """What a reader and the same command, given to two copies, find wrong with what a kill left."""
        whole = self.whole[variant]
        for name in ("first", "second"):
            twin = self.place / name / "target"
            shutil.rmtree(twin.parent, ignore_errors=True)
            twin.parent.mkdir()
            if folder.exists():
                shutil.copytree(folder, twin, symlinks=True)
            child = Child(self.work, twin, variant, reads=name == "first")
            result = child.end()
            if result is None:
                yield f"failed: {child.words()}"
                continue
            if name == "first" and result["seen"] is not None and result["seen"] not in whole.seen:
                yield f"a reader saw neither the old nor the new: {str(result['seen'])[:500]}"
            if result["outcome"] != whole.result["outcome"]:
                yield f"another outcome: {_difference(result['outcome'], whole.result['outcome'])}"
            if result["files"] != whole.result["files"]:
                odd = sorted((Counter(result["files"]) - Counter(whole.result["files"])).elements())
                gone = sorted((Counter(whole.result["files"]) - Counter(result["files"])).elements())
                yield f"left {odd[:5]}, lacks {gone[:5]}"


def _difference(one: Any, other: Any, path: str = "") -> str:
    """Where two values of JSON first differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in sorted(one.keys() | other.keys())]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(str(number), *each) for number, each in enumerate(zip(one, other, strict=True))]
    else:
        return f"{path}: {str(one)[:200]} and not {str(other)[:200]}"
    return next(_difference(a, b, f"{path}/{key}") for key, a, b in pairs if a != b)


def main() -> None:
    """Runs the trials, says how each went, and ends with a JSON line; fails where there was a fault."""
    known = works()
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=200, help="of all works together")
    arguments.add_argument("--works", nargs="+", choices=sorted(known), default=sorted(known))
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    given = arguments.parse_args()
    import torch

    torch.set_num_threads(1)
    started, found, faulty = time.monotonic(), dict[str, Any](), 0
    wanted = len(given.works) if given.quick else given.kills
    with tempfile.TemporaryDirectory(prefix="quatrain-kills-") as place:
        for number, name in enumerate(given.works):
            kills = wanted // len(given.works) + (number < wanted % len(given.works))
            phases, wrong, began = Counter[str](), 0, time.monotonic()
            for count, trial in enumerate(Trials(known[name], Path(place) / name, given.seed).run(kills), 1):
                phases[trial.phase] += 1
                wrong += bool(trial.faults)
                for fault in trial.faults:
                    print(f"{name}, killed at {trial.phase}: {fault}", file=sys.stderr, flush=True)
                if count % 10 == 0:
                    print(f"{name}: {count} kills, {wrong} of them with faults", file=sys.stderr, flush=True)
            faulty += wrong
            found[name] = {
                "kills": kills, "equal": kills - wrong, "after_kill": known[name].after_kill,
                "killed_during": dict(phases.most_common()), "seconds": round(time.monotonic() - began, 1),
            }  # fmt: skip
            print(f"{name} {known[name].after_kill} after a kill: {kills - wrong} of {kills} kills without a fault")
    finish("kills", (wanted - faulty) / max(wanted, 1), "the share of kills after which nothing differed; must be 1",
           quick=given.quick, kills=wanted, given_again=2 * wanted, equal=wanted - faulty, works=found, seed=given.seed,
           seconds=time.monotonic() - started, processor_seconds=sum(os.times()[:4]))  # fmt: skip
    if faulty:
        raise SystemExit(f"{faulty} kills left something else: see above")


if __name__ == "__main__":
    main()
