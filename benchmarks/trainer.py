"""Our Trainer beside the Hugging Face Trainer: the same weights, batches, optimizer, schedule, clipping and precision.

Every turn is a process of its own, so that its peak memory is too; ours, theirs and the measuring of matrix products
take turns. Both learn next tokens of the same windows in the same order, with AdamW (fused), decay on matrices, a
cosine after a warm-up, gradients clipped at 1 and attention through `sdpa`; bfloat16 is what each makes of it, theirs
autocast over float32 weights. Steps are counted after the first two; the loss of every step is compared.

The limit of a step is the time of its matrix products alone, each measured for its own shape, forward and backward, in
whichever way was fastest: attention's over all pairs, and once more over the half that is seen. Like is held against
like: the median step against each product's median time, the fastest step against its fastest. With --compile our
Trainer runs a third time, with `train.compile`.

    python benchmarks/trainer.py [--models gpt2 llama] [--precisions bfloat16 float32] [--repeat 3] [--steps 8]
        [--rows 8] [--length 512] [--device cuda] [--same-allocator] [--compile]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import Worker, finish, in_turns, parser, require, serve, spread

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 50257, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                      "num_attention_heads": 12, "max_position_embeddings": 1024}),
    "llama": ("llama", {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
                        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048}),
    "llama-1b": ("llama", {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
                           "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                           "max_position_embeddings": 4096, "tie_word_embeddings": True}),
    "tiny": ("gpt2", {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                      "num_attention_heads": 2, "max_position_embeddings": 64}),
}  # fmt: skip
"""Family and shape: GPT-2 small, a Llama for a CPU, Llama 3.2's 1B, and one for --quick."""
SIDES = ("quatrain", "transformers")
COMPILED = "compiled"
LIMIT = "matrix products"
WARM = 2
"""Steps of a turn that are not counted."""
COMMON = {"learning_rate": 6e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0}
WARMUP = 2
NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""What --same-allocator gives to both sides: freed memory stays with the process, as ours asks for by itself."""


def windows(vocabulary: int, rows: int, length: int) -> Any:
    """The stream of both sides: texts in which a token says much about the next one, so that losses fall.

    The last label of each window is left out, as transformers does, which knows no token past the window.
    """
    import numpy as np

    from quatrain.training.streams import WindowStream

    class Windows(WindowStream):
        def next(self) -> Any:
            batch = super().next()
            labels = batch.labels.clone()
            labels[:, -1] = -100
            return batch.replace(labels=labels)

    generator = np.random.default_rng(0)
    tokens = np.zeros(200_000, dtype=np.int64)
    drawn = generator.zipf(1.5, len(tokens)) % vocabulary
    follows = generator.random(len(tokens)) < 0.5
    for place in range(1, len(tokens)):
        tokens[place] = (tokens[place - 1] * 31 + 7) % vocabulary if follows[place] else drawn[place]
    return Windows(tokens, length=length, rows=rows, seed=0)


class StepEnds:
    """When each step ended, by the clock and in processor time, which other processes hardly change."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.processor_times: list[float] = []

    def add(self) -> None:
        """One step has ended."""
        self.times.append(time.perf_counter())
        self.processor_times.append(time.process_time())


def ours(
    folder: Path, precision: str, rows: int, length: int, steps: int, device: str, *, compiled: bool = False
) -> dict[str, Any]:
    """Trains with our Trainer; returns the time at the end of each step, and each loss."""
    from quatrain.models.io import model_folder

    return train_ours(model_folder.load(folder, device=device), precision, rows, length, steps, compiled=compiled)


def train_ours(
    model: Any, precision: str, rows: int, length: int, steps: int, *, compiled: bool = False
) -> dict[str, Any]:
    """The same of a model that is there already."""
    from quatrain.training.objectives import Causal
    from quatrain.training.settings import TrainSettings
    from quatrain.training.trainer import Hooks, Trainer

    stream = windows(model.config.vocab_size, rows, length)
    settings = TrainSettings.model_validate(
        {**COMMON, "steps": steps, "batch_tokens": rows * length, "precision": precision, "warmup_steps": WARMUP}
        | {"schedule": "cosine", "log_every": 1, "compile": compiled}
    )
    ends = StepEnds()
    losses: list[float] = []
    hooks = Hooks(progress=lambda step, **metrics: ends.add(), log=lambda entry: losses.append(entry["loss"]))
    Trainer(model, Causal(), stream, settings, steps=steps, hooks=hooks).train()
    return vars(ends) | {"losses": losses}


def theirs(folder: Path, precision: str, rows: int, length: int, steps: int, device: str) -> dict[str, Any]:
    """The same with transformers' Trainer."""
    import torch

    transformers = require("transformers")
    config = transformers.AutoConfig.from_pretrained(folder, use_cache=False)
    for rate in (name for name in NO_DROPOUT if hasattr(config, name)):
        setattr(config, rate, 0.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa"
    )
    return train_theirs(model, precision, rows, length, steps, device)


def train_theirs(model: Any, precision: str, rows: int, length: int, steps: int, device: str) -> dict[str, Any]:
    """The same of a model that is there already."""
    import torch

    from quatrain.training.schedules import learning_rate_ratio

    transformers = require("transformers")
    require("accelerate", "test")
    stream = windows(model.config.vocab_size, rows, length)
    batches = [stream.next().input_ids for _ in range(steps)]
    # The first token of a row is no label of theirs, but would count in what they divide the loss by.
    examples = [
        {"input_ids": row, "labels": torch.cat((row.new_tensor([-100]), row[1:]))} for batch in batches for row in batch
    ]
    ends = StepEnds()

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.add()

    class Same(transformers.Trainer):  # type: ignore[misc]
        """Their Trainer with the windows in order, and our schedule."""

        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(examples, batch_size=rows)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: learning_rate_ratio(min(step, steps - 1), steps=steps, warmup_steps=WARMUP),
            )
            return self.lr_scheduler

    with tempfile.TemporaryDirectory() as output:
        arguments = transformers.TrainingArguments(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=rows,
            learning_rate=COMMON["learning_rate"],
            weight_decay=COMMON["weight_decay"],
            adam_beta1=COMMON["beta1"],
            adam_beta2=COMMON["beta2"],
            max_grad_norm=COMMON["max_grad_norm"],
            optim="adamw_torch_fused",
            bf16=precision == "bfloat16",
            use_cpu=device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = Same(model=model, args=arguments, train_dataset=examples, callbacks=[Clock()])
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)  # prints where this worker answers
        trainer.train()
    return vars(ends) | {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def products(folder: Path, precision: str, rows: int, length: int, device: str) -> dict[str, Any]:
    """Seconds of a step's matrix products, and the rate of one large square product.

    Of each product the median time and, as `fastest_…`, the shortest.
    """
    import torch
    from torch import nn

    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model
    from quatrain.planning.machine import matmul_flops_per_second

    dtype, config = getattr(torch, precision), model_folder.load_config(folder)
    with torch.device("meta"):
        model = Model(config)
    linears = Counter((part.in_features, part.out_features) for part in model.modules() if isinstance(part, nn.Linear))
    seconds = 0.01 if length < 64 else 0.5
    timed = [
        (count, best_of(product, device, seconds))
        for (inputs, outputs), count in linears.items()
        for product in linear_ways(rows * length, inputs, outputs, dtype, device)
    ]
    heads = rows * config.num_attention_heads
    thin, square = (torch.randn(heads, length, width, device=device).to(dtype) for width in (config.head_dim, length))
    part, half = thin[:, : length // 2], square[:, :, : length // 2]
    # Forward and backward have each of these twice.
    whole = (lambda: thin @ thin.mT, lambda: square @ thin, lambda: square.mT @ thin)
    seen = (lambda: thin @ part.mT, lambda: half @ part, lambda: half.mT @ thin)
    times, size = 2 * config.num_hidden_layers, 64 if length < 64 else 2048
    pairs = {"": whole, "_seen": seen}
    totals = {
        end: timed + [(times, best_of([product], device, seconds)) for product in each] for end, each in pairs.items()
    }
    return {
        f"{which}seconds{end}": sum(count * found[number] for count, found in total)
        for end, total in totals.items()
        for number, which in enumerate(("", "fastest_"))
    } | {
        "large_flops_per_second": max(matmul_flops_per_second(dtype, device, size=size) for _ in range(5)),
    }


def linear_ways(tokens: int, inputs: int, outputs: int, dtype: Any, device: str) -> list[list[Callable[[], Any]]]:
    """For each of a linear layer's three products, ways to compute it: as PyTorch does, and by blocks of outputs."""
    import torch

    x, weight, gradient = (
        torch.randn(*shape, device=device).to(dtype)
        for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    out, of_weight, of_x = torch.empty_like(gradient), torch.empty_like(weight), torch.empty_like(x)
    blocks = [slice(start, start + 4096) for start in range(0, outputs, 4096)]

    def forward() -> None:
        for block in blocks:
            torch.mm(x, weight[block].mT, out=out[:, block])

    def backward() -> None:
        for block in blocks:
            torch.mm(gradient[:, block].mT, x, out=of_weight[block])

    return [
        [lambda: torch.mm(x, weight.mT, out=out), forward],
        [lambda: torch.mm(gradient, weight, out=of_x)],
        [lambda: torch.mm(gradient.mT, x, out=of_weight), backward],
    ]


def best_of(ways: Sequence[Callable[[], Any]], device: str, seconds: float, tries: int = 6) -> tuple[float, float]:
    """Seconds of the fastest way, the median call and the fastest; each is tried so often and so long at least."""
    import torch

    times: list[tuple[float, float]] = []
    for way in ways:
        way()
        found: list[float] = []
        begun, tried = time.perf_counter(), 0
        while tried < tries or time.perf_counter() - begun < seconds:
            tried += 1
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            if device != "cpu":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        times.append((median(found), min(found)))
    return min(times)


def work(side: str, folder: Path, chosen: Any) -> None:
    """A worker's side: one training, or one measuring of products."""
    shape = chosen.precisions[0], chosen.rows, chosen.length

    def measure() -> dict[str, Any]:
        import torch

        from quatrain.core.process_memory import peak_memory

        if side == LIMIT:
            return products(folder, *shape, chosen.device)
        turn = theirs if side == "transformers" else partial(ours, compiled=side == COMPILED)
        found = turn(folder, *shape, WARM + chosen.steps, chosen.device)
        found["peak_bytes"] = peak_memory() if chosen.device == "cpu" else torch.cuda.max_memory_allocated()
        return found

    serve(measure)


def summary(runs: list[dict[str, Any]], limits: dict[str, float], tokens: int, flops: float) -> dict[str, Any]:
    """What a side's turns say, beside the limits of a step in seconds; `flops` are a step's."""
    steps = [steps_of(run) for run in runs]
    seconds, fastest = median(median(run) for run in steps), min(min(run) for run in steps)
    return {
        "tokens_per_second": spread(tokens / median(run) for run in steps),
        "fastest_tokens_per_second": tokens / fastest,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "share_of_limit": limits["seconds"] / seconds,
        "fastest_share_of_limit": limits["fastest_seconds"] / fastest,
        "share_of_limit_seen": limits["seconds_seen"] / seconds,
        "utilisation": flops / seconds / limits["large_flops_per_second"],
        "losses": runs[0]["losses"],
    }


def steps_of(run: dict[str, Any], clock: str = "times") -> list[float]:
    """Seconds of the steps of a turn that count; `clock` is a list of `StepEnds`."""
    return [after - before for before, after in zip(run[clock][WARM - 1 :], run[clock][WARM:], strict=False)]


def beside(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """What two sides' turns come to: ratios of speed and memory, and how far the losses of each step are apart."""
    return {
        "tokens_per_second_ratio": left["tokens_per_second"]["median"] / right["tokens_per_second"]["median"],
        "memory_ratio": left["peak_bytes"] / right["peak_bytes"],
        "loss_differences": [abs(a - b) for a, b in zip(left["losses"], right["losses"], strict=True)],
    }


def compare(name: str, precision: str, chosen: Any, folder: Path) -> dict[str, Any]:
    """Turns of both sides and of the limit for one model and precision; prints what they say."""
    from quatrain.models.io import model_folder
    from quatrain.planning.counts import flops_per_token

    shape = ["--precisions", precision, "--rows", str(chosen.rows), "--length", str(chosen.length)]
    shape += ["--steps", str(chosen.steps), "--device", chosen.device]

    def turn(side: str) -> Any:
        worker = Worker(__file__, "--worker", side, str(folder), *shape)
        answer = worker.turn()
        worker.close()
        return answer

    print(f"\n{name}, {precision}: {chosen.rows} x {chosen.length} tokens a step, {chosen.steps} steps", flush=True)
    sides_run = (*SIDES, COMPILED) if chosen.compile else SIDES
    found: Any = in_turns({side: lambda side=side: turn(side) for side in (*sides_run, LIMIT)}, chosen.repeat)
    limits = {what: median(run[what] for run in found[LIMIT]) for what in ("seconds", "seconds_seen")}
    limits["fastest_seconds"] = min(run["fastest_seconds"] for run in found[LIMIT])
    limits["large_flops_per_second"] = max(run["large_flops_per_second"] for run in found[LIMIT])
    tokens = chosen.rows * chosen.length
    flops = tokens * flops_per_token(model_folder.load_config(folder), chosen.length)
    sides = {side: summary(found[side], limits, tokens, flops) for side in sides_run}
    for side, said in sides.items():
        rate = said["tokens_per_second"]
        print(
            f"  {side:<13}{rate['median']:>8,.0f} tokens/s ({rate['min']:,.0f} to {rate['max']:,.0f}, fastest step "
            f"{said['fastest_tokens_per_second']:,.0f})  peak {said['peak_bytes'] / 1e9:.2f} GB  "
            f"{said['share_of_limit']:.0%} of the products' limit (fastest step {said['fastest_share_of_limit']:.0%}, "
            f"pairs seen alone {said['share_of_limit_seen']:.0%}), {said['utilisation']:.0%} of one large product's "
            "rate",
            flush=True,
        )
    result = beside(*(sides[side] for side in SIDES))
    left, apart = sides[SIDES[0]], result["loss_differences"]
    print(
        f"  {result['tokens_per_second_ratio']:.2f}x their tokens/s, {result['memory_ratio']:.2f}x their memory\n"
        f"  losses {left['losses'][0]:.4f} to {left['losses'][-1]:.4f}; apart by {apart[0]:.1e} at the first step, "
        f"{max(apart[:3]):.1e} within three, {max(apart):.1e} within all {len(apart)}\n"
        f"  limit {limits['seconds']:.3f} s a step (fastest {limits['fastest_seconds']:.3f}); one large product: "
        f"{limits['large_flops_per_second'] / 1e9:,.0f} GFLOP/s",
        flush=True,
    )
    return result | {"limits": limits, "sides": sides}


def write(name: str, folder: Path) -> None:
    """A folder with fresh weights of this shape, drawn as transformers does, which both sides read."""
    import torch

    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.stack import Model

    family, sizes = SHAPES[name]
    transformers = require("transformers")
    with torch.device("meta"):
        shape = Model(fresh_config(family, sizes, head="causal"))
    shape.to_empty(device="cpu")
    model_folder.save(shape, folder)
    torch.manual_seed(0)
    fresh = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    fresh.save_pretrained(folder)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=SHAPES, default=["gpt2", "llama"])
    arguments.add_argument("--precisions", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    arguments.add_argument("--rows", type=int, default=8)
    arguments.add_argument("--length", type=int, default=512)
    arguments.add_argument("--repeat", type=int, default=3, help="turns of each side")
    arguments.add_argument("--steps", type=int, default=8, help="measured steps of a turn")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--compile", action="store_true", help="our Trainer once more, with train.compile")
    arguments.add_argument("--same-allocator", action="store_true", help="both sides keep the memory that they free")
    arguments.add_argument(
        "--worker", nargs=2, metavar=("SIDE", "FOLDER"), help="(how the benchmark starts its own processes)"
    )
    chosen = arguments.parse_args()
    if chosen.worker:
        work(chosen.worker[0], Path(chosen.worker[1]), chosen)
        return
    require("transformers")
    require("accelerate", "test")
    if chosen.same_allocator:
        os.environ.update(KEPT)
    if chosen.quick:
        chosen.models, chosen.precisions = ["tiny"], ["float32"]
        chosen.rows, chosen.length, chosen.steps, chosen.repeat = 2, 16, 3, 1
    results: dict[str, Any] = {}
    for name in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            write(name, Path(folder))
            for precision in chosen.precisions:
                results[f"{name} {precision}"] = compare(name, precision, chosen, Path(folder))
    first = next(iter(results))
    finish(
        "trainer",
        results[first]["tokens_per_second_ratio"],
        f"tokens/s of our Trainer / of the Hugging Face Trainer ({first})",
        quick=chosen.quick,
        results=results,
        batch=[chosen.rows, chosen.length],
        same_allocator=chosen.same_allocator,
    )


if __name__ == "__main__":
    main()
