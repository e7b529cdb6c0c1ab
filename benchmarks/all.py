"""Runs every benchmark in turn, keeps their JSON lines, and writes a page with every ratio.

    python benchmarks/all.py                        # all that this commit has not measured yet, for hours
    python benchmarks/all.py --brief                # at the same sizes, but one or two rounds of less, in an hour
    python benchmarks/all.py --only engine trainer  # some
    python benchmarks/all.py --page                 # the page again, from the lines that there are

Lines are appended to `benchmarks/results.jsonl`; `benchmarks/RATIOS.md` has the newest of each benchmark, those that
lose first. A benchmark that fails is kept with its message, and the others go on. The same command goes on where it
was stopped: a benchmark with a line of this commit is not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS))

from common import child_environment, current_commit  # noqa: E402

HELPERS = {"all", "common"}
ARGUMENTS = {"shakespeare": ["--peer"]}
"""What a benchmark gets beside its defaults."""
BRIEF = {
    "adapters": "--repeat 1 --steps 4 --methods lora qlora",
    "choosing": "--repeat 5",
    "curate": "--repeat 1",
    "dpo": "--repeat 1",
    "engine": "--repeat 2",
    "experts": "--repeat 1",
    "families": "--repeat 1 --dtypes float32 --families llama gemma2 gpt2 olmo2 bert nomic_bert",
    "fuzz": "--inputs 1000",
    "generation_speed": "--repeat 2",
    "grpo": "--repeat 1",
    "kills": "--kills 8",
    "lm_eval_speed": "--repeat 1",
    "load_memory": "--repeat 2",
    "methods": "--methods lora prefix --steps 200",
    "modalities": "--repeat 2",
    "passes": "--repeat 5",
    "pipelines": "--repeat 1",
    "plan_memory": "--cases llama-full-float32 wide-qlora-bfloat16",
    "predictions": "--cases llama-float32 llama-accumulation",
    "quantized_linear": "--repeat 3",
    "quickstart": "--seeds 0",
    "recurrence": "--repeat 1",
    "recurrent": "--repeat 1",
    "reward": "--repeat 1",
    "serving": "--seconds 60",
    "serving_speed": "--repeat 1 --clients 8",
    "shakespeare": "--settings long --repeat 1",
    "startup": "--repeat 3",
    "token_file_memory": "--sizes 10 100",
    "trainer": "--repeat 1 --models llama",
    "training_throughput": "--repeat 1",
}
"""What a brief run gives to a benchmark in place of its defaults."""
ENOUGH = {"whole": ["whole"], "brief": ["brief", "whole"], "quick": ["quick"]}
"""Which lines make a run of a size unnecessary."""
WITHOUT_QUICK = {"fuzz": ["--inputs", "100"], "token_file_memory": []}
"""Benchmarks with sizes of their own: what they get for a quick run."""
HEADER = """# Ratios

Written by `python benchmarks/all.py --page` from the JSON line of each benchmark; do not edit. A ratio above 1 means
that Quatrain is ahead; those that lose come first. [RESULTS.md](RESULTS.md) explains them.
"""
RATIO_COLUMNS = ("benchmark", "ratio", "of", "date", "commit", "load", "minutes")


def names() -> list[str]:
    """Every benchmark, by its file."""
    return sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in HELPERS)


def command_of(name: str, size: str) -> list[str]:
    """The words after `python` that run a benchmark at a size: `whole`, `brief` or `quick`."""
    words = {
        "whole": ARGUMENTS.get(name, []),
        "brief": BRIEF[name].split() if name in BRIEF else ARGUMENTS.get(name, []),
        "quick": WITHOUT_QUICK.get(name, ["--quick"]),
    }
    return [f"benchmarks/{name}.py", *words[size]]


def measure(name: str, size: str) -> dict[str, Any]:
    """The line of one benchmark, with its command and seconds; of one that fails, its message."""
    command, started = command_of(name, size), time.monotonic()
    done = subprocess.run([sys.executable, *command], cwd=BENCHMARKS.parent, env=child_environment(), text=True,
                          capture_output=True)  # fmt: skip
    line = last_object(done.stdout)
    found = {"benchmark": name, "size": size, "command": f"python {' '.join(command)}"}
    found |= {"seconds": round(time.monotonic() - started, 1), "commit": current_commit()}
    found |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if line is None or (done.returncode and "ratio" in line):
        words = (done.stderr.strip() or done.stdout.strip() or "printed nothing").splitlines()
        return found | {"failed": words[-1][:300], "exit_code": done.returncode}
    return line | {key: value for key, value in found.items() if key not in ("date", "commit") or key not in line}


def last_object(output: str) -> dict[str, Any] | None:
    """The JSON object in the last line of what a benchmark printed."""
    try:
        found = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that were kept, oldest first; a last one that was cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in map(last_object, lines) if line is not None]


def page(lines: Iterable[Mapping[str, Any]]) -> str:
    """The newest line of each benchmark as a table in Markdown: ratios below 1 first, then what failed."""
    newest = {str(line["benchmark"]): line for line in lines if line.get("size") != "quick"}
    rated = sorted((line for line in newest.values() if "ratio" in line), key=lambda line: float(line["ratio"]))
    others = [line for line in newest.values() if "ratio" not in line]
    parts = [HEADER, *_table(RATIO_COLUMNS, [_row(line) for line in rated])]
    if others:
        parts += ["\nWithout a ratio:\n"]
        parts += _table(("benchmark", "found", "date", "commit"), [_other(line) for line in others])
    return "\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _row(line: Mapping[str, Any]) -> list[str]:
    ratio = float(line["ratio"])
    shown = f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"
    of = str(line.get("ratio_of", "")).replace("|", "/")
    minutes = f"{line['seconds'] / 60:.1f}" if isinstance(line.get("seconds"), int | float) else ""
    return [f"`{line['command']}`", shown, of, *_when(line), str(line.get("load", "")), minutes]


def _other(line: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{key} {value}" for key, value in line.items() if type(value) is int and key != "exit_code")
    found = f"failed: {line['failed']}".replace("|", "/") if "failed" in line else counts
    return [f"`{line['command']}`", found, *_when(line)]


def _when(line: Mapping[str, Any]) -> list[str]:
    return [str(line.get("date", ""))[:10], str(line.get("commit", ""))]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing, writes the page; 1 if a benchmark failed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=names(), metavar="NAME", help="only these benchmarks")
    size = arguments.add_mutually_exclusive_group()
    size.add_argument("--brief", dest="size", action="store_const", const="brief", help="fewer rounds of fewer cases")
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="tiny sizes, not for the page")
    arguments.add_argument("--page", action="store_true", help="run nothing, only write the page")
    arguments.add_argument("--folder", type=Path, default=BENCHMARKS, help="of the lines and of the page")
    arguments.set_defaults(size="whole")
    options = arguments.parse_args(argv)
    kept, commit, failed = options.folder / "results.jsonl", current_commit(), 0
    mine = (line for line in read_lines(kept) if line.get("commit") == commit and "failed" not in line)
    done = {line["benchmark"] for line in mine if line.get("size") in ENOUGH[options.size]}
    for name in [] if options.page else options.only or names():
        if name in done:
            print(f"{name}: has a line of {commit}")
            continue
        line = measure(name, options.size)
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        failed += "failed" in line
        told = line.get("failed") or (f"ratio {line['ratio']}" if "ratio" in line else "done")
        print(f"{name}: {told} ({line['seconds']:.0f} s)", flush=True)
    (options.folder / "RATIOS.md").write_text(page(read_lines(kept)), encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
