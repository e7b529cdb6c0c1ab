"""Every method of adaptation on the same task and base: what trains, memory, speed, score; the table of the documents.

A small BERT reads film reviews once and is the base of all (kept in --base, so that it is made once). Then each method
teaches it the sentiment of SST-2's sentences through the shipped recipe's stage, in a process of its own; each has the
best of its learning rates on the development set, its score is that of the test set. The ratio is the score of LoRA
over that of learning every weight.

    python benchmarks/methods.py [--methods lora ia3 ...] [--steps 400] [--base FOLDER]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from common import Worker, finish, parser, serve

RATES: dict[str, tuple[float, ...]] = {
    "full": (3e-4, 1e-3), "lora": (2e-3, 5e-3), "rslora": (1e-3, 2e-3), "dora": (2e-3, 5e-3), "qlora": (2e-3, 5e-3),
    "loha": (5e-3, 1e-2), "lokr": (5e-3, 1e-2), "ia3": (1e-2, 3e-2), "bottleneck": (1e-3, 3e-3),
    "bitfit": (3e-3, 1e-2), "last-layers": (3e-4, 1e-3), "prompt": (3e-2, 1e-1), "p-tuning": (1e-3, 3e-3),
    "prefix": (1e-2, 3e-2),
}  # fmt: skip
"""Learning rates that each method is tried with."""
ADAPTERS: dict[str, dict[str, Any]] = {
    "rslora": {"method": "lora", "use_rslora": True}, "qlora": {"method": "lora", "quantize_base": "nf4"},
    "loha": {"rank": 8}, "lokr": {"rank": 8}, "bottleneck": {"bottleneck_dim": 24},
}  # fmt: skip
"""What is said of a method beside its name; ranks are 16 where nothing is."""
RECIPE = """
name = "base"
seed = 0
[data]
source = "sst2-train"
dev = "sst2-dev"
test = "sst2-test"
[tokenizer]
kind = "wordpiece"
vocab_size = {vocabulary}
lowercase = true
[model]
family = "bert"
hidden_size = {width}
num_hidden_layers = 3
num_attention_heads = 4
max_position_embeddings = 128
[[stage]]
kind = "tokenizer"
data = {{ source = "movie-reviews" }}
[[stage]]
kind = "pretrain"
objective = "masked"
mask_ratio = 0.3
data = {{ source = "movie-reviews", validation = 0.02 }}
train = {{ steps = {steps}, batch_tokens = 4096, learning_rate = 0.006, warmup_steps = {warmup_steps}, optimizer = "muon", schedule = "wsd" }}
"""  # noqa: E501 - a line of a recipe
STAGE = """
name = "task"
seed = 0
[data]
source = "sst2-train"
dev = "sst2-dev"
test = "sst2-test"
[model]
folder = {base}
[[stage]]
kind = "finetune"
objective = "classify"
train = {{ steps = {steps}, batch_tokens = 2048, learning_rate = {rate}, warmup_steps = {warmup_steps}, schedule = "linear", evaluate_every = {every}, keep = "best", metric = "validation_accuracy" }}
[evaluate]
examples = 2000
"""  # noqa: E501 - a line of a recipe


def make_base(folder: Path, *, quick: bool) -> Path:
    """The folder of the base, made where it is not there yet."""
    import quatrain
    from quatrain.core.progress import SilentReporter
    from quatrain.runs.recipe import loads

    shape = {"width": 32, "vocabulary": 400, "steps": 2, "warmup_steps": 0}
    if not quick:
        shape = {"width": 192, "vocabulary": 8192, "steps": 1500, "warmup_steps": 20}
    if not (folder / "base" / "model" / "config.json").is_file():
        print("the base reads film reviews ...", flush=True)
        quatrain.run(loads(RECIPE.format(**shape)), runs_dir=folder, reporter=SilentReporter())
    return folder / "base" / "model"


def teach(base: Path, method: str, rate: float, steps: int) -> dict[str, Any]:
    """One training; what it took and the scores of both sets."""
    import quatrain
    from quatrain.core.progress import SilentReporter
    from quatrain.runs.recipe import loads

    shape = {"steps": steps, "rate": rate, "every": max(1, steps // 4), "warmup_steps": steps // 20}
    text = STAGE.format(base=json.dumps(str(base)), **shape)
    adapter: dict[str, Any] = {"method": method} | ADAPTERS.get(method, {}) if method != "full" else {}
    if adapter:
        said = ", ".join(f"{name} = {json.dumps(value)}" for name, value in adapter.items())
        text = text.replace("[evaluate]", f"adapter = {{ {said} }}\n[evaluate]")
    with tempfile.TemporaryDirectory() as folder:
        run = quatrain.run(loads(text), runs_dir=folder, reporter=SilentReporter())
    found = run.results[-1]
    (scores,) = (found["scores"] or {}).values()
    return {
        "rate": rate,
        "trained": found["trainable_parameters"],
        "parameters": found["parameters"],
        "peak_bytes": found["memory"]["peak"],
        "held_bytes": sum(found["memory"].get(part, 0) for part in ("weights", "gradients", "optimizer")),
        "tokens_per_second": found["tokens"] / found["training_seconds"],
        "development": found["metrics"]["validation_accuracy"],
        "score": scores["accuracy"],
    }


def best(method: str, base: Path, steps: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """The training whose learning rate was best on the development set."""
    found = []
    for rate in rates:
        worker = Worker(__file__, "--worker", method, str(rate), str(base), "--steps", str(steps))
        found.append(worker.turn())
        worker.close()
    return max(found, key=lambda each: float(each["development"]))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", choices=RATES, default=list(RATES))
    arguments.add_argument("--steps", type=int, default=400)
    arguments.add_argument("--base", type=Path, help="where the base is, or will be kept")
    arguments.add_argument("--worker", nargs=3, metavar=("METHOD", "RATE", "BASE"), help="(for its own processes)")
    chosen = arguments.parse_args()
    if chosen.worker:
        method, rate, base = chosen.worker
        serve(lambda: teach(Path(base), method, float(rate), chosen.steps))
        return
    if chosen.quick:
        chosen.methods, chosen.steps = ["full", "lora"], 4
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(chosen.base or Path(folder), quick=chosen.quick)
        print("method        trained    share  rate   tokens/s     held      peak  accuracy (test)", flush=True)
        for method in chosen.methods:
            rates = RATES[method][:1] if chosen.quick else RATES[method]
            found = results[method] = best(method, base, chosen.steps, rates)
            print(
                f"{method:<12}{found['trained']:>9,}  {found['trained'] / found['parameters']:>6.2%}  "
                f"{found['rate']:<7g}"
                f"{found['tokens_per_second']:>8,.0f}  {found['held_bytes'] / 1e6:>5.1f} MB  "
                f"{found['peak_bytes'] / 1e6:>5,.0f} MB  {found['score']:.1%}",
                flush=True,
            )
    names = ("lora", "full") if {"lora", "full"} <= set(results) else (chosen.methods[0],) * 2
    finish(
        "methods",
        results[names[0]]["score"] / results[names[1]]["score"],
        f"accuracy of {names[0]} / of {names[1]}",
        quick=chosen.quick,
        results=results,
        steps=chosen.steps,
    )


if __name__ == "__main__":
    main()
