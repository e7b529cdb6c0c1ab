"""The main job, `quatrain run quickstart`, for several seeds: wall time, peak memory, every score after every stage.

Each seed is a fresh process with a run folder of its own. The table shows mean ± standard deviation (and the smallest)
over the seeds; a goal of a score holds for the mean, one of time or memory for every seed. There is no peer: the ratio
is the time allowed over the time taken.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--keep FOLDER] [OVERRIDE ...]
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import finish, parser, run_child, spread

PEOPLE, HALF = "questions by people", "questions by people, development half"
COMBINATIONS, VALUES, PHRASINGS = (f"generated: new {name}" for name in ("combinations", "values", "phrasings"))
SECONDS, BYTES = 360, 2_000_000_000
GOALS = [  # held-out set, least execution accuracy of the final model
    (PEOPLE, 0.80),
    (HALF, 0.80),
    (COMBINATIONS, 0.95),
    (VALUES, 0.95),
    (PHRASINGS, 0.90),
]
TINY = """data.examples=300 tokenizer.vocab_size=300
model.hidden_size=32 model.intermediate_size=64 model.num_hidden_layers=1 model.num_attention_heads=2
stage.pretrain.train.steps=3 stage.pretrain.train.warmup_steps=1 stage.pretrain.train.batch_tokens=1024
stage.finetune.train.steps=3 stage.finetune.train.warmup_steps=1 stage.finetune.train.batch_tokens=1024
evaluate.examples=4 evaluate.max_new_tokens=8""".split()

KEPT = "kind seconds peak_memory_bytes tokens parameters model_bytes generation_tokens_per_second flops".split()
"""What the JSON line says of each stage."""


def measure(seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One run from nothing: wall time of the whole command, peak memory, stages and scores."""
    name = f"quickstart-seed-{seed}"
    command = [
        sys.executable,
        "-m",
        "quatrain",
        "run",
        "quickstart",
        f"seed={seed}",
        f"name={name}",
        *overrides,
        "--runs-dir",
        str(folder),
        "--quiet",
        "--restart",
    ]
    seconds, peak = run_child(command)
    paths = sorted((folder / name / "stages").glob("*/result.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    scores = {
        result["kind"]: {name: next(iter(values.values())) for name, values in result["scores"].items()}
        for result in results
        if result.get("scores")
    }
    stages = [{key: result[key] for key in KEPT if key in result} for result in results]
    if peak is None:
        peak = max(result.get("peak_memory_bytes") or 0 for result in results)
    shown = (f"{stage} " + ", ".join(f"{score:.1%}" for score in sets.values()) for stage, sets in scores.items())
    print(f"seed {seed}: {seconds:.0f} s, {peak / 1e9:.2f} GB; {'; '.join(shown)}", flush=True)
    return {"seed": seed, "seconds": seconds, "peak_bytes": peak, "scores": scores, "stages": stages}


def table(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Prints mean ± standard deviation (smallest) for each stage and held-out set, and returns them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    sets = list(dict.fromkeys(name for run in runs for values in run["scores"].values() for name in values))
    print(f"\n{'stage':<10}" + "".join(f"{name:>28}" for name in sets))
    for stage in dict.fromkeys(stage for run in runs for stage in run["scores"]):
        cells = found.setdefault(stage, {})
        for name in sets:
            values = [run["scores"][stage][name] for run in runs if name in run["scores"].get(stage, {})]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells[name] = {"mean": statistics.mean(values), "std": deviation, "min": min(values)}
        texts = [f"{100 * c['mean']:.1f} ± {100 * c['std']:.1f} % ({100 * c['min']:.1f})" for c in cells.values()]
        print(f"{stage:<10}" + "".join(f"{text:>28}" for text in texts))
    return found


def goals(runs: list[dict[str, Any]]) -> dict[str, bool]:
    """Each goal, and whether it is reached."""
    held = {
        f"{name} >= {least:.0%}, mean": statistics.mean(run["scores"]["quantize"].get(name, 0) for run in runs) >= least
        for name, least in GOALS
    }
    held[f"wall time < {SECONDS} s"] = all(run["seconds"] < SECONDS for run in runs)
    held[f"peak memory < {BYTES / 1e9:.0f} GB"] = all(run["peak_bytes"] < BYTES for run in runs)
    return held


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--keep", type=Path, help="a folder in which the runs stay (default: a temporary one)")
    arguments.add_argument("overrides", nargs="*", help="settings to change, such as stage.pretrain.train.steps=200")
    chosen = arguments.parse_intermixed_args()
    seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
    overrides = [*(TINY if chosen.quick else []), *chosen.overrides]
    with tempfile.TemporaryDirectory() as temporary:
        runs = [measure(seed, chosen.keep or Path(temporary), overrides) for seed in seeds]
    summary, held = table(runs), goals(runs)
    print()
    for goal, holds in held.items():
        print(f"{'holds' if holds else 'FAILS':<6} {goal}")
    seconds, peaks = spread(run["seconds"] for run in runs), spread(run["peak_bytes"] for run in runs)
    finish(
        "quickstart",
        SECONDS / seconds["median"],
        f"{SECONDS} s allowed / median wall time",
        quick=chosen.quick,
        seconds=seconds,
        peak_bytes=peaks,
        scores=summary,
        goals=held,
        overrides=chosen.overrides,
        runs=runs,
    )


if __name__ == "__main__":
    main()
