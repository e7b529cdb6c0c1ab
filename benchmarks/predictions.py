"""What `quatrain check` says a training will take, beside what it then takes: peak memory and time, over a table.

Every case is predicted in one process and trained in another, for a few steps and a checkpoint. Memory is that of the
whole process at its peak; `added` leaves out what the process holds before it has a model. Time is that of the
training steps. The ratio is the tolerance that the issue sets over the largest error: above 1 every case is within it.

    python benchmarks/predictions.py [--cases small-float32 gpt2-bfloat16] [--seconds 6]
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import child_environment, finish, parser

MEMORY, TIME = 0.15, 0.20
"""How far a prediction may be off, as shares of what is measured."""


WARM, LEAST, MOST = 3, 8, 500
"""Steps of a training: those that are not counted, the fewest and the most."""


class Enough(Exception):
    """Ends a training whose time is known."""


@dataclass(frozen=True)
class Case:
    """A model of a family by its sizes, a batch of rows of `length` tokens, and settings of training."""

    family: str = "llama"
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    inner: int = 768
    vocabulary: int = 4096
    rows: int = 8
    length: int = 256
    precision: str = "float32"
    optimizer: str = "adamw"
    accumulation: int = 1
    rank: int = 0
    head: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        """The model's configuration."""
        from quatrain.models.families.fresh import fresh_config

        sizes = {
            "vocab_size": self.vocabulary, "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.heads,
            "max_position_embeddings": max(256, self.length), "tie_word_embeddings": True,
        }  # fmt: skip
        config = fresh_config(self.family, sizes, head=self.head)
        return config.with_(labels=("no", "yes")) if self.head == "sequence_classification" else config

    def settings(self) -> Any:
        """The settings of its training."""
        from quatrain.training.settings import TrainSettings

        values = {
            "steps": 1, "warmup": 0, "schedule": "constant", "batch_tokens": self.rows * self.length * self.accumulation,
            "accumulation": self.accumulation, "precision": self.precision, "optimizer": self.optimizer,
        }  # fmt: skip
        return TrainSettings(**(values | self.more))

    def adapter(self) -> Any:
        """Its adapter, or None."""
        from quatrain.adaptation.settings import AdapterSettings

        return AdapterSettings(rank=self.rank, tokens="none") if self.rank else None

    def model(self) -> Any:
        """The model with fresh weights, as it trains."""
        from quatrain.adaptation import lora
        from quatrain.models.stack import Model

        model = Model(self.config()).initialize(0)
        if self.rank:
            lora.apply(model, self.adapter())
        return model

    def task(self) -> tuple[Any, Any]:
        """Objective and stream: windows of random tokens."""
        import numpy as np

        from quatrain.training.objectives import Causal
        from quatrain.training.streams import WindowStream

        tokens = np.random.default_rng(0).integers(0, self.vocabulary, 400_000).astype("<u2")
        return Causal(), WindowStream(tokens, length=self.length, rows=self.rows, seed=0)


CASES: dict[str, Case] = {
    "tiny": Case(layers=2, hidden=32, inner=64, heads=2, vocabulary=256, rows=4, length=32),
    "small-float32": Case(layers=3, vocabulary=1024),
    "small-bfloat16-muon": Case(layers=3, vocabulary=1024, precision="bfloat16", optimizer="muon"),
    "medium-float32": Case(layers=8, hidden=512, heads=8, inner=1536, vocabulary=8192, rows=4),
    "medium-bfloat16": Case(layers=8, hidden=512, heads=8, inner=1536, vocabulary=8192, rows=8, precision="bfloat16"),
    "medium-muon": Case(layers=8, hidden=512, heads=8, inner=1536, vocabulary=8192, rows=4, optimizer="muon"),
    "accumulation-4": Case(layers=6, hidden=384, heads=6, inner=1024, rows=4, accumulation=4),
    "accumulation-4-bfloat16": Case(
        layers=6, hidden=384, heads=6, inner=1024, rows=4, accumulation=4, precision="bfloat16"
    ),
    "adapter-float32": Case(layers=8, hidden=512, heads=8, inner=1536, rows=4, rank=16),
    "adapter-bfloat16": Case(layers=8, hidden=512, heads=8, inner=1536, rows=8, rank=16, precision="bfloat16"),
    "checkpointing": Case(layers=8, hidden=384, heads=6, inner=1024, rows=8, more={"activation_checkpointing": True}),
    "long": Case(layers=4, rows=1, length=2048),
    "gpt2-nano-float32": Case("gpt2", 6, 384, 6, 1536, 8192, rows=8, length=256),
    "large-vocabulary": Case("gpt2", 4, 256, 4, 1024, 50257, rows=4, length=256),
    "gpt2-bfloat16": Case("gpt2", 12, 768, 12, 3072, 50257, rows=2, length=512, precision="bfloat16"),
}
QUICK = ("tiny",)


def idle() -> int:
    """Bytes that this process holds before it has a model, all that a training loads included."""
    from quatrain.training.preflight.memory import process_bytes

    return process_bytes()


def predict(case: Case, seconds: float) -> dict[str, Any]:
    """What the preflight says of a case."""
    import torch

    from quatrain.training.preflight.memory import BatchShape, training_peak
    from quatrain.training.preflight.timing import measure

    objective, stream = case.task()
    rest = idle()
    began = time.perf_counter()
    peak = training_peak(
        case.config(), case.settings(), objective, BatchShape(case.rows, case.length), precision=case.precision,
        adapter=case.adapter(), rest=rest,
    )  # fmt: skip
    took = time.perf_counter() - began
    step = measure(case.model(), objective, stream, case.settings(), seconds=min(4.0, seconds))
    return {
        "idle": rest, "peak": peak.total, "parts": peak.parts, "moment": peak.moment, "seconds_to_predict": took,
        "step": step.step(case.rows * case.length * case.accumulation), "threads": torch.get_num_threads(),
    }  # fmt: skip


def train(case: Case, seconds: float) -> dict[str, Any]:
    """What the training of a case takes: as many steps as `seconds` hold, with a checkpoint among them."""
    from functools import partial

    from quatrain.memory import peak_memory, reset_peak_memory
    from quatrain.models import hub
    from quatrain.training.trainer import Hooks, Trainer

    objective, stream = case.task()
    rest = idle()
    reset_peak_memory()
    model = case.model()
    times: list[float] = []

    def progress(step: int, **metrics: float) -> None:
        times.append(trainer.seconds)  # of the steps alone
        if len(times) >= LEAST and times[-1] - times[WARM - 1] > seconds:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        settings = case.settings().model_copy(update={"checkpoint_every": WARM, "steps": MOST})
        hooks = Hooks(save=partial(save, hub, model), progress=progress)
        trainer = Trainer(model, objective, stream, settings, steps=MOST, folder=Path(folder), hooks=hooks)
        with contextlib.suppress(Enough):
            trainer.train()
    step = (times[-1] - times[WARM - 1]) / (len(times) - WARM)
    return {"idle": rest, "peak": peak_memory(), "step": step, "measured_parts": trainer.memory, "steps": len(times)}


def save(hub: Any, model: Any, folder: Path) -> None:
    """Writes the weights of a checkpoint: of the adapter, or of the whole model."""
    from quatrain.adaptation import lora, peft_files

    if any(True for _ in lora.adapters(model)):
        peft_files.save_adapter(model, folder, base_model="")
    else:
        hub.save(model, folder)


def child(way: str, name: str, seconds: float) -> dict[str, Any]:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--worker", way, name, "--seconds", str(seconds)]
    done = subprocess.run(command, env=child_environment(), text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}; its message is above")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(name: str, seconds: float) -> dict[str, Any]:
    """One case, predicted and measured; prints a line."""
    said, found = child("predict", name, seconds), child("train", name, seconds)
    added = (said["peak"] - said["idle"]) / max(1, found["peak"] - found["idle"]) - 1
    whole, step = said["peak"] / found["peak"] - 1, said["step"] / found["step"] - 1
    megabytes = [f"{value / 1e6:8,.0f}" for value in (said["peak"], found["peak"])]
    print(
        f"{name:<24}{megabytes[0]} {megabytes[1]} {whole:>+6.1%} {added:>+7.1%}   "
        f"{said['step'] * 1e3:8,.1f} {found['step'] * 1e3:8,.1f} {step:>+6.1%}   {said['moment']}",
        flush=True,
    )
    return {"memory_error": whole, "added_error": added, "time_error": step, "predicted": said, "measured": found}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", nargs="+", choices=list(CASES), default=[name for name in CASES if name != "tiny"])
    arguments.add_argument("--seconds", type=float, default=6.0, help="measured steps of each case")
    arguments.add_argument("--worker", nargs=2, help="(how the benchmark starts its own processes)")
    chosen = arguments.parse_args()
    if chosen.worker:
        way, name = chosen.worker
        print(json.dumps({"predict": predict, "train": train}[way](CASES[name], chosen.seconds)))
        return
    names: Sequence[str] = QUICK if chosen.quick else chosen.cases
    seconds = 0.3 if chosen.quick else chosen.seconds
    print(f"{'':<24}{'memory, MB':^17} {'error':>6} {'added':>7}   {'step, ms':^17} {'error':>6}")
    print(f"{'case':<24}{'said':>8} {'found':>8} {'':>6} {'error':>7}   {'said':>8} {'found':>8} {'':>6}   peak at")
    results = {name: compare(name, seconds) for name in names}
    worst = {
        key: max((abs(result[key]) for result in results.values())) for key in ("memory_error", "added_error", "time_error")
    }
    print("largest error: " + ", ".join(f"{key.removesuffix('_error')} {value:.1%}" for key, value in worst.items()))
    ratio = min(MEMORY / worst["memory_error"], MEMORY / worst["added_error"], TIME / worst["time_error"])
    what = "tolerance (memory 15 %, time 20 %) / largest error"
    finish("predictions", ratio, what, quick=chosen.quick, largest_error=worst, results=results)


if __name__ == "__main__":
    main()
