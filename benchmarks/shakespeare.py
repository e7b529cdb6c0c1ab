"""Tiny Shakespeare by character: the `shakespeare-char` recipe, short and long, beside nanoGPT's configuration.

Time is that of the training steps alone, validation not counted; loss is the mean in nats per character over the whole
validation split (the last tenth of the text). `--peer` trains nanoGPT's CPU configuration in the same run, by a plain
loop over transformers' GPT-2 in float32 (Karpathy, github.com/karpathy/nanoGPT: 4 layers, 4 heads, 128 wide, context
64, 2,000 steps of 12 x 64 tokens). The ratio is the time allowed for the short setting over the time taken, or with
`--peer` the peer's time over the short setting's.

    python benchmarks/shakespeare.py [--settings short long] [--repeat 3] [--peer] [--long OVERRIDE ...]
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Worker, finish, in_turns, parser, require, serve, spread

SETTINGS: dict[str, dict[str, Any]] = {
    "short": {
        "seconds": 20,
        "loss": 1.88,
        "overrides": ["stage.pretrain.train.steps=150", "stage.pretrain.train.evaluate_every=50"],
    },
    "long": {"seconds": 137, "loss": 1.47, "overrides": []},
}
"""Each setting: the time allowed, the loss to reach in it, and how the recipe is changed."""
TINY = """model.hidden_size=32 model.intermediate_size=64 model.num_hidden_layers=1 model.num_attention_heads=2
stage.pretrain.train.batch_tokens=1024 stage.pretrain.train.accumulation=1
stage.pretrain.train.steps=20 stage.pretrain.train.warmup_steps=2 stage.pretrain.train.evaluate_every=10""".split()
CONTEXT, ROWS, STEPS, WARMUP = 64, 12, 2000, 100
PEER = "nanoGPT's configuration"


def ours(folder: Path, overrides: list[str], seed: int) -> dict[str, Any]:
    """One run of the recipe; its time, loss and curve from the files that every run writes."""
    from quatrain.core.progress import SilentReporter, read_metrics
    from quatrain.runs.runner import run

    changes = [f"seed={seed}", f"name=seed-{seed}", "stage.pretrain.evaluate=false", *overrides]
    done = run("shakespeare-char", changes, runs_dir=folder, reporter=SilentReporter())
    result = next(result for result in done.results if result["kind"] == "pretrain")
    lines = [line for line in read_metrics(done.folder / "metrics.jsonl") if line["stage"] == result["name"]]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    curve = [
        {"step": line["step"], "seconds": seconds.get(line["step"]), "loss": line["validation_loss"]}
        for line in lines
        if "validation_loss" in line
    ]
    return {
        "seconds": result["training_seconds"],
        "loss": result["validation_loss"],
        "curve": curve,
        "tokens": result["tokens"],
        "parameters": result["parameters"],
        "precision": result.get("precision"),
        "steps": result.get("steps"),
    }


def nanogpt(source: str, seed: int, steps: int, evaluate_every: int) -> dict[str, Any]:
    """nanoGPT's `train_shakespeare_char` for the CPU, on the same split, as a plain loop."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GPT2Config, GPT2LMHeadModel

    from quatrain.data.batches import windows
    from quatrain.data.documents import read_documents

    text = "".join(read_documents(source))
    table = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = np.array([table[character] for character in text])
    learned, held_out = np.split(ids, [int(0.9 * len(ids))])
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(table),
            n_embd=128,
            n_layer=4,
            n_head=4,
            n_positions=CONTEXT,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    for name, parameter in model.named_parameters():  # bias = False: GPT-2's stay at their zeros
        parameter.requires_grad_(not name.endswith("bias"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    choose = np.random.default_rng(seed)

    @torch.inference_mode()
    def validation_loss() -> float:
        model.eval()
        total, last = 0.0, len(held_out) - 1
        starts = np.arange(0, last - CONTEXT + 1, CONTEXT)
        parts = [(part, CONTEXT) for part in np.array_split(starts, max(1, len(starts) // 256))]
        parts += [(np.array([last - last % CONTEXT]), last % CONTEXT)] if last % CONTEXT else []
        for part, length in parts:
            batch = windows(held_out, part, length)
            logits = model(batch.input_ids, use_cache=False).logits
            total += cross_entropy(logits.flatten(0, 1).double(), batch.labels.flatten(), reduction="sum").item()
        model.train()
        return total / last

    seconds, curve = 0.0, []
    model.train()
    for step in range(1, steps + 1):
        started = time.perf_counter()
        way = min(1.0, max(0.0, (step - 1 - WARMUP) / max(1, steps - WARMUP)))
        rate = 1e-3 * step / (WARMUP + 1) if step <= WARMUP else 1e-4 + 0.5 * (1 + math.cos(math.pi * way)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = windows(learned, choose.integers(0, len(learned) - CONTEXT, ROWS), CONTEXT)
        logits = model(batch.input_ids, use_cache=False).logits
        cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - started
        if step % evaluate_every == 0 or step == steps:
            curve.append({"step": step, "seconds": seconds, "loss": validation_loss()})
    return {
        "seconds": seconds,
        "loss": curve[-1]["loss"],
        "tokens": steps * ROWS * CONTEXT,
        "curve": curve,
        "parameters": sum(p.numel() for p in trained),
        "precision": "float32",
        "steps": steps,
    }


def work(chosen: Any) -> None:
    """A worker's side: one training for each turn, a new seed each."""
    seeds = iter(range(1_000))
    source, quick = ["data.source=" + chosen.source], (TINY if chosen.quick else [])
    with tempfile.TemporaryDirectory() as folder:
        if chosen.worker == PEER:
            steps, every = (20, 10) if chosen.quick else (STEPS, 250)
            serve(lambda: nanogpt(chosen.source, next(seeds), steps, every))
        else:
            serve(lambda: ours(Path(folder), source + getattr(chosen, chosen.worker) + quick, next(seeds)))


def show(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints one setting's figures and the curve of its first run; returns them for the JSON line."""
    seconds, loss = spread(run["seconds"] for run in runs), spread(run["loss"] for run in runs)
    rate = statistics.median(run["tokens"] / run["seconds"] for run in runs)
    first = runs[0]
    print(
        f"\n{name}: loss {loss['median']:.4f} ({loss['min']:.4f} to {loss['max']:.4f}) in {seconds['median']:.1f} s "
        f"({seconds['min']:.1f} to {seconds['max']:.1f})\n  {first['parameters']:,} parameters, "
        f"{first['steps']:,} steps, {rate:,.0f} tokens/s, {first['precision']}"
    )
    for point in first["curve"]:
        print(f"  step {point['step']:>6,}  {point['seconds'] or 0:>7.1f} s  validation loss {point['loss']:.4f}")
    return {"seconds": seconds, "loss": loss, "tokens_per_second": rate} | {
        key: first[key] for key in ("parameters", "steps", "precision", "curve")
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    arguments.add_argument("--repeat", type=int, default=3, help="trainings of each, with seeds 0, 1, …")
    arguments.add_argument("--peer", action="store_true", help="train nanoGPT's configuration too")
    arguments.add_argument("--source", default="tinyshakespeare", help="the text: a name of the catalog or a file")
    for name, setting in SETTINGS.items():
        arguments.add_argument(
            f"--{name}",
            nargs="*",
            default=setting["overrides"],
            metavar="OVERRIDE",
            help=f"of the recipe, in place of {setting['overrides'] or 'none'}",
        )
    arguments.add_argument("--worker", help="(how the benchmark starts its own processes)")
    chosen = arguments.parse_args()
    if chosen.worker:
        work(chosen)
        return
    if chosen.peer:
        require("transformers")
    common = ["--source", chosen.source] + (["--quick"] if chosen.quick else [])
    common += [text for name in SETTINGS for text in (f"--{name}", *getattr(chosen, name))]
    names = chosen.settings + ([PEER] if chosen.peer else [])
    workers = {name: Worker(__file__, *common, "--worker", name) for name in names}
    repeat = 1 if chosen.quick else chosen.repeat
    runs: dict[str, Any] = in_turns({name: worker.turn for name, worker in workers.items()}, repeat)
    for worker in workers.values():
        worker.close()
    shown = {name: show(name, found) for name, found in runs.items()}
    print()
    held = {}
    for name in chosen.settings:
        loss, seconds = SETTINGS[name]["loss"], SETTINGS[name]["seconds"]
        goal = f"{name}: loss <= {loss} within {seconds} s"
        held[goal] = all(run["loss"] <= loss and run["seconds"] <= seconds for run in runs[name])
        print(f"{'holds' if held[goal] else 'FAILS':<6} {goal}, in every run")
    first = chosen.settings[0]
    taken = shown[first]["seconds"]["median"]
    allowed = shown[PEER]["seconds"]["median"] if chosen.peer else SETTINGS[first]["seconds"]
    what = f"seconds of {PEER}" if chosen.peer else "seconds allowed"
    finish(
        "shakespeare",
        allowed / taken,
        f"{what} / seconds of the {first} setting",
        quick=chosen.quick,
        goals=held,
        overrides={name: getattr(chosen, name) for name in chosen.settings},
        results=shown,
    )


if __name__ == "__main__":
    main()
