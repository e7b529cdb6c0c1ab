"""Training tokens per second, beside a plain loop over transformers with the same configuration, weights and batches.

Ours is the Trainer as recipes use it, with the recipe's optimizer and precision = "auto", and once more like for like
with the peer's AdamW in float32. The peer is the loop that most people write: AdamW (fused), gradients clipped at 1,
float32 and bfloat16 autocast. Each way has a process of its own, they take turns, and each says its peak memory, its
share of the measured rate of matrix products in the dtype that it multiplies in, and its loss. The ratio is ours over
the faster peer, for quickstart's model and batch.

    python benchmarks/training_throughput.py [--repeat 5] [--steps 8] [--models quickstart gpt2]
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import Worker, finish, in_turns, parser, require, serve, spread

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"family": "gpt2", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
              "num_attention_heads": 6, "max_position_embeddings": 256}, {"context": 256}),
    "tiny": ({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
             {"context": 16, "batch_tokens": 64}),
}  # fmt: skip
"""Changes to the quickstart's model and pre-training: a model like GPT-2 (nanoGPT's 6 x 384), and one for --quick."""
MODELS = ("quickstart", *SHAPES)
WARM = 2
"""Steps of a turn that are not counted."""
OURS, OURS_ADAMW = "quatrain (recipe)", "quatrain AdamW float32"
PEER, PEER_AUTOCAST = "transformers float32", "transformers bfloat16 autocast"
WAYS = (OURS, OURS_ADAMW, PEER, PEER_AUTOCAST)
LIKE_FOR_LIKE = {"learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1, "beta2": 0.95}


class Case:
    """The quickstart recipe under a shape: its model, its pretraining, its batch of `rows` x `length` tokens."""

    def __init__(self, name: str):
        from quatrain.runs.recipe import load

        # Of the recipe itself: its later stages do not suit every family.
        recipe, (model, pretraining) = load("quickstart", []), SHAPES.get(name, ({}, {}))
        stage = next(stage for stage in recipe.stage if stage.kind == "pretrain")
        self.model = type(recipe.model).model_validate(recipe.model.model_dump(exclude_unset=True) | model)
        self.vocabulary = recipe.tokenizer.vocab_size
        self.length = pretraining.get("context") or stage.context or self.model.max_position_embeddings
        self.rows = max(1, pretraining.get("batch_tokens", stage.train.batch_tokens) // self.length)
        self.train = stage.train.model_copy(update={"accumulation": 1, "dropout": 0.0})
        self.tokens = self.rows * self.length

    def batches(self) -> Any:
        """The same stream for every way: windows of random tokens, in the same order."""
        import numpy as np

        from quatrain.training.streams import WindowStream

        tokens = np.random.default_rng(0).integers(0, self.vocabulary, 500_000)
        return WindowStream(tokens, length=self.length, rows=self.rows, seed=0)


def ours(case: Case, way: str, folder: Path) -> Callable[[int], tuple[float, float, str]]:
    """What trains a number of steps with the Trainer, and returns seconds after warming up, loss, precision."""
    from quatrain.models.io import model_folder
    from quatrain.training.objectives import Causal
    from quatrain.training.trainer import Hooks, Trainer

    model, stream = model_folder.load(folder), case.batches()
    like_for_like = LIKE_FOR_LIKE | {"precision": "float32", "optimizer": "adamw"}
    settings = case.train if way == OURS else case.train.model_copy(update=like_for_like)

    def train(steps: int) -> tuple[float, float, str]:
        times: dict[int, float] = {}
        hooks = Hooks(progress=lambda step, **metrics: times.setdefault(step, time.perf_counter()))
        result = Trainer(model, Causal(), stream, settings, steps=WARM + steps, hooks=hooks).train()
        return times[WARM + steps] - times[WARM], result.loss, result.precision

    return train


def theirs(case: Case, way: str, folder: Path) -> Callable[[int], tuple[float, float, str]]:
    """The same by a plain loop over transformers."""
    import torch
    from torch.nn.functional import cross_entropy

    transformers = require("transformers")
    model, stream = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), case.batches()
    model.train()
    values = LIKE_FOR_LIKE
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=values["learning_rate"],
        betas=(0.9, values["beta2"]),
        weight_decay=values["weight_decay"],
        fused=True,
    )
    autocast = way == PEER_AUTOCAST

    def precision() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    def train(steps: int) -> tuple[float, float, str]:
        times, total = [], 0.0
        for _ in range(WARM + steps):
            batch = stream.next()
            with precision():
                logits = model(input_ids=batch.input_ids, use_cache=False).logits
                loss = cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.item()
            times.append(time.perf_counter())
        return times[-1] - times[WARM - 1], total / len(times), "bfloat16" if autocast else "float32"

    return train


def work(name: str, way: str, folder: Path, steps: int) -> None:
    """A worker's side: trains `steps` steps a turn."""
    import torch

    from quatrain.core.process_memory import peak_memory, reset_peak_memory
    from quatrain.models.io import model_folder
    from quatrain.planning.counts import flops_per_token
    from quatrain.planning.machine import matmul_flops_per_second

    case = Case(name)
    train = (theirs if way.startswith("transformers") else ours)(case, way, folder)
    flops = flops_per_token(model_folder.load_config(folder), case.length)

    def measure() -> dict[str, Any]:
        reset_peak_memory()
        seconds, loss, precision = train(steps)
        peak = peak_memory()
        rate = case.tokens * steps / seconds
        best = matmul_flops_per_second(getattr(torch, precision), size=1024)
        return {
            "tokens_per_second": rate,
            "peak_bytes": peak,
            "loss": loss,
            "precision": precision,
            "flops_per_second": rate * flops,
            "matmul_flops_per_second": best,
        }

    serve(measure)


@contextlib.contextmanager
def weights(case: Case) -> Iterator[Path]:
    """A folder with fresh weights of a case's shape."""
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model

    with tempfile.TemporaryDirectory() as folder:
        model_folder.save(Model(case.model.config(case.vocabulary)).initialize(0), folder)
        yield Path(folder)


def compare(name: str, ways: Sequence[str], steps: int, repeat: int) -> dict[str, Any]:
    """The ways for one shape, in turns, the first turn of each not counted; prints a line each."""
    case = Case(name)
    print(f"\n{name}: {case.rows} x {case.length} tokens a step")
    with weights(case) as folder:
        workers = {way: Worker(__file__, "--worker", name, way, str(folder), "--steps", str(steps)) for way in ways}
        in_turns({way: worker.turn for way, worker in workers.items()}, 1)
        found: dict[str, Any] = in_turns({way: worker.turn for way, worker in workers.items()}, repeat)
        for worker in workers.values():
            worker.close()
    results = {}
    best: dict[str, float] = {}  # of all turns: what others do to the machine can only lower it
    for run in (run for runs in found.values() for run in runs):
        best[run["precision"]] = max(best.get(run["precision"], 0.0), run["matmul_flops_per_second"])
    for way, runs in found.items():
        rate = spread(run["tokens_per_second"] for run in runs)
        share = spread(run["flops_per_second"] for run in runs)["median"] / best[runs[0]["precision"]]
        peak = max(run["peak_bytes"] for run in runs)
        results[way] = {
            "tokens_per_second": rate,
            "peak_bytes": peak,
            "share_of_matmul_peak": share,
            "precision": runs[0]["precision"],
            "losses": [run["loss"] for run in runs],
        }
        print(
            f"  {way:<32} {rate['median']:>9,.0f} tokens/s ({rate['min']:,.0f} to {rate['max']:,.0f})"
            f"  {runs[0]['precision']:<9} peak {peak / 1e6:>6,.0f} MB  {share:>4.0%} of the matrix products' rate",
            flush=True,
        )
    median = {way: result["tokens_per_second"]["median"] for way, result in results.items()}
    faster = max(median[PEER], median.get(PEER_AUTOCAST, 0.0))
    ratios = {
        "recipe / faster peer": median[OURS] / faster,
        "recipe / transformers float32": median[OURS] / median[PEER],
    }
    if OURS_ADAMW in median:
        ratios["AdamW float32, like for like"] = median[OURS_ADAMW] / median[PEER]
    print("  " + "; ".join(f"{what}: {ratio:.2f}x" for what, ratio in ratios.items()))
    return {
        "ratios": ratios,
        "ways": results,
        "matmul_flops_per_second": best,
        "batch": [case.rows, case.length],
        "changes": SHAPES.get(name, {}),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=["quickstart", "gpt2"])
    arguments.add_argument("--repeat", type=int, default=5, help="turns of each way")
    arguments.add_argument("--steps", type=int, default=8, help="measured steps of a turn")
    arguments.add_argument(
        "--worker", nargs=3, metavar=("MODEL", "WAY", "FOLDER"), help="(how the benchmark starts its own processes)"
    )
    chosen = arguments.parse_args()
    if chosen.worker:
        name, way, folder = chosen.worker
        work(name, way, Path(folder), chosen.steps)
        return
    require("transformers")
    names, ways, steps, repeat = chosen.models, WAYS, chosen.steps, chosen.repeat
    if chosen.quick:
        names, ways, steps, repeat = ["tiny"], (OURS, PEER), 3, 1
    results = {name: compare(name, ways, steps, repeat) for name in names}
    what = f"tokens/s of the recipe's training / of the faster transformers loop ({names[0]})"
    finish(
        "training_throughput",
        results[names[0]]["ratios"]["recipe / faster peer"],
        what,
        quick=chosen.quick,
        results=results,
    )


if __name__ == "__main__":
    main()
