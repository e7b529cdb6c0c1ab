"""What `quatrain check` says a training will take, beside what `quatrain run` then takes: peak memory and time.

Each case is a recipe. It is checked in one process and run in another; memory is that of the whole process at its peak
(of the allocator on a GPU), time that of the training with its validations and checkpoints. The ratio is the tolerance
(15 % of memory, 20 % of time) over the largest error: at 1 and above every case is within it.

    python benchmarks/predictions.py [--cases llama-float32 gpt2-bfloat16]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import child_environment, finish, parser

MEMORY, TIME = 0.15, 0.20
"""How far a prediction may be off, as shares of what is measured."""

HEAD = """
name = "case"
[data]
source = '{text}'
validation = 0.05
[tokenizer]
kind = "{tokenizer}"
vocab_size = {vocabulary}
[model]
family = "{family}"
hidden_size = {hidden}
num_hidden_layers = {layers}
num_attention_heads = {heads}
max_position_embeddings = {length}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
objective = "{objective}"
evaluate = false
train = {{ steps = {steps}, batch_tokens = {tokens}, warmup_steps = 1, device = "cpu", \
precision = "{precision}", {more} }}
"""
USUAL = {"tokenizer": "bpe", "vocabulary": 2048, "family": "llama", "hidden": 256, "layers": 4, "heads": 4,
         "length": 256, "objective": "causal", "precision": "float32", "tokens": 2048, "steps": 60,
         "more": "evaluate_every = 30"}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": 32, "layers": 1, "heads": 2, "length": 32, "tokens": 128, "vocabulary": 400, "steps": 12},
    "llama-float32": {},
    "llama-bfloat16-muon": {"precision": "bfloat16", "more": 'optimizer = "muon"', "tokens": 8192, "steps": 50},
    "llama-wide-float32": {"hidden": 512, "layers": 6, "heads": 8, "steps": 25},
    "llama-wide-muon": {"hidden": 512, "layers": 6, "heads": 8, "steps": 25, "more": 'optimizer = "muon"'},
    "llama-accumulation": {"hidden": 384, "layers": 6, "heads": 6, "tokens": 8192, "steps": 10,
                           "more": "accumulation = 4", "precision": "bfloat16"},
    "llama-recomputed": {"hidden": 384, "layers": 8, "heads": 6, "tokens": 4096, "steps": 15,
                         "more": "activation_checkpointing = true"},
    "llama-long": {"length": 1024, "tokens": 4096, "steps": 30, "precision": "bfloat16"},
    "gpt2-bfloat16": {"family": "gpt2", "hidden": 768, "layers": 12, "heads": 12, "vocabulary": 8192, "steps": 15,
                      "precision": "bfloat16"},
    "modernbert-masked": {"family": "modernbert", "objective": "masked", "tokenizer": "wordpiece", "tokens": 4096},
    "t5-spans": {"family": "t5", "objective": "span", "layers": 3, "tokens": 4096, "steps": 40},
}  # fmt: skip
QUICK = ("tiny",)


def recipe_of(name: str, folder: Path) -> Path:
    """Writes a case's recipe, and the text that all learn."""
    text = folder / "text.txt"
    if not text.exists():
        draw = random.Random(0)
        words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 9))) for _ in range(4000)]
        weights = [1 / (place + 3) for place in range(len(words))]
        lines = (" ".join(draw.choices(words, weights, k=12)) + "." for _ in range(8_000))
        text.write_text("\n".join(lines), encoding="utf-8")
    path = folder / f"{name}.toml"
    path.write_text(HEAD.format(**(USUAL | {"text": text} | CASES[name])), encoding="utf-8")
    return path


def quatrain(*arguments: str) -> str:
    """The command line in a process of its own; its standard output."""
    done = subprocess.run([sys.executable, "-m", "quatrain", *arguments], env=child_environment(), text=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"quatrain {' '.join(arguments)} ended with {done.returncode}; its message is above")
    return done.stdout


def compare(name: str, folder: Path) -> dict[str, Any]:
    """One case, predicted and measured; prints a line."""
    recipe = recipe_of(name, folder)
    (said,) = json.loads(quatrain("check", str(recipe), "--json").splitlines()[-1])["stages"]
    quatrain("run", str(recipe), f"name={name}", "--runs-dir", str(folder / "runs"), "--quiet")
    found = json.loads((folder / "runs" / name / "stages/02-pretrain/result.json").read_text())
    peaks = said["memory"]["peak"], found["memory"]["peak"]
    times = said["seconds"], found["elapsed_seconds"]
    errors = [first / second - 1 for first, second in (peaks, times)]
    print(
        f"{name:<22}{peaks[0] / 1e6:8,.0f} {peaks[1] / 1e6:8,.0f} {errors[0]:>+6.1%}   "
        f"{times[0]:7.1f} {times[1]:7.1f} {errors[1]:>+6.1%}",
        flush=True,
    )
    return {"memory_error": errors[0], "time_error": errors[1], "peaks": peaks, "seconds": times}


def main() -> None:
    arguments = parser(__doc__)
    usual = [name for name in CASES if name not in QUICK]
    arguments.add_argument("--cases", nargs="+", choices=list(CASES), default=usual)
    chosen = arguments.parse_args()
    print(f"{'':<22}{'memory, MB':^17} {'error':>6}   {'seconds':^15} {'error':>6}")
    print(f"{'case':<22}{'said':>8} {'found':>8} {'':>6}   {'said':>7} {'found':>7}")
    with tempfile.TemporaryDirectory() as folder:
        results = {name: compare(name, Path(folder)) for name in (QUICK if chosen.quick else chosen.cases)}
    worst = {key: max(abs(result[key]) for result in results.values()) for key in ("memory_error", "time_error")}
    print(f"largest error: memory {worst['memory_error']:.1%}, time {worst['time_error']:.1%}")
    ratio = min(MEMORY / max(1e-9, worst["memory_error"]), TIME / max(1e-9, worst["time_error"]))
    what = "tolerance (memory 15 %, time 20 %) / largest error"
    finish("predictions", ratio, what, quick=chosen.quick, largest_error=worst, results=results)


if __name__ == "__main__":
    main()
