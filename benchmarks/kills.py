"""Kills a training run at random moments and resumes it: the weights must be those of the run that was left alone.

    python benchmarks/kills.py --kills 200

A tiny model trains on a shuffled stream with dropout, evaluation, early stopping, best weights kept and a checkpoint at
every other step. Each trial goes on from a chain of killed runs: it is started, killed with SIGKILL at a random moment,
and what it left on the disk is resumed to the end twice, from two copies. The weights, the metrics and the steps of
both must be, bit for bit, those of the run that nobody killed. Ends with a JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, installed or not

PHASES = ("start", "step", "evaluation", "checkpoint", "end")
"""What a run is at; it notes this down in shared memory, where a kill does not reach it."""


class Setup:
    """One optimizer and precision; `run(folder, note)` trains from what is in the folder to the end."""

    def __init__(self, optimizer: str, precision: str, steps: int):
        self.optimizer, self.precision, self.steps = optimizer, precision, steps

    def run(self, folder: Path, note: Callable[[str], None]) -> dict[str, Any]:
        """Trains and returns the SHA-256 of the weights, the steps and the metrics."""
        import torch

        from quatrain.models.io import model_folder
        from quatrain.models.transformer.config import ModelConfig
        from quatrain.models.transformer.stack import Model
        from quatrain.training.objectives import Causal
        from quatrain.training.settings import TrainSettings
        from quatrain.training.streams import StreamedExamples
        from quatrain.training.trainer import Hooks, Trainer

        torch.set_num_threads(1)
        config = ModelConfig(
            family="llama",
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            dropout=0.1,
        )
        settings = TrainSettings(
            steps=self.steps,
            batch_tokens=256,
            accumulation=2,
            learning_rate=1e-2,
            warmup_steps=5,
            optimizer=self.optimizer,  # type: ignore[arg-type]
            precision=self.precision,  # type: ignore[arg-type]
            dropout=0.1,
            evaluate_every=3,
            checkpoint_every=2,
            keep="best",
            patience=8,
        )
        model = Model(config).initialize(0)
        held_out = torch.tensor([example.ids for example in _examples(40, seed=9, length=24)])

        def save(place: Path) -> None:
            note("checkpoint")
            model_folder.save(model, place)

        def validate(current: Model) -> dict[str, float]:
            note("evaluation")
            _, loss = current(held_out[:, :-1], held_out[:, 1:])
            return {"validation_loss": loss.mean().item()}

        hooks = Hooks(
            save=save,
            load=lambda place: model.load_state_dict(model_folder.load(place).state_dict()),
            validate=validate,
            progress=lambda step, **metrics: note("step"),
        )
        stream = StreamedExamples(
            lambda start: iter(_examples(300, seed=1)[start:]), batch_tokens=128, seed=3, buffer=64
        )
        trainer = Trainer(model, Causal(), stream, settings, steps=self.steps, seed=5, folder=folder, hooks=hooks)
        note("step")
        result = trainer.train()
        note("end")
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return {
            "sha256": digest.hexdigest(),
            "steps": result.steps,
            "best_step": result.best_step,
            "tokens": result.size,
            "metrics": result.metrics,
        }


def _examples(count: int, *, seed: int, length: int | None = None) -> list[Any]:
    """Noisy cycles of ragged lengths with ragged masks."""
    import numpy as np

    from quatrain.data.batches import TokenExample

    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size = length or int(generator.integers(6, 40))
        ids = (np.arange(size) * 7 + generator.integers(0, 64) + generator.integers(0, 3, size)) % 64
        found.append(TokenExample(ids.tolist(), [bool(b) for b in generator.integers(0, 4, size)]))
    return found


class Child:
    """A run in a process of its own, forked from this one, so that nothing is loaded anew."""

    def __init__(self, setup: Setup, folder: Path):
        self.result = folder.parent / f"{folder.name}.result.json"
        self.result.unlink(missing_ok=True)
        self._phase = mmap.mmap(-1, 1)
        self.pid = os.fork()
        if self.pid:
            return
        try:
            found = setup.run(folder, self._note)
            self.result.write_text(json.dumps(found))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)

    def _note(self, phase: str) -> None:
        self._phase[0] = PHASES.index(phase)

    def kill(self, after: float) -> str | None:
        """Kills it after some seconds; says what it was at, or None where it had ended."""
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return None
            time.sleep(max(0.0, min(0.002, deadline - time.monotonic())))
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return PHASES[self._phase[0]]

    def wait(self) -> dict[str, Any]:
        """Lets it end; returns its result."""
        _, status = os.waitpid(self.pid, 0)
        if status or not self.result.exists():
            raise SystemExit(f"a run failed by itself (status {status})")
        found: dict[str, Any] = json.loads(self.result.read_text())
        return found


def trials(kills: int, seed: int, setups: list[Setup], place: Path) -> Iterator[tuple[str, int, bool]]:
    """Kill after kill: what the run was at, the checkpoints that it left, and whether both resumed runs were equal."""
    randomly = random.Random(seed)
    expected, seconds = {}, {}
    for number, setup in enumerate(setups):
        started = time.monotonic()
        expected[number] = Child(setup, place / f"whole-{number}").wait()
        seconds[number] = time.monotonic() - started
    done = 0
    while done < kills:
        number = done % len(setups)
        setup, folder = setups[number], place / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        # A chain: what a kill left is killed again, until the run ends or has been killed often enough.
        for _ in range(4):
            phase = Child(setup, folder).kill(randomly.uniform(0.0, seconds[number]))
            if phase is None or done == kills:
                break
            same = True
            for copy in ("first", "second"):
                twin = place / copy
                shutil.rmtree(twin, ignore_errors=True)
                if folder.exists():
                    shutil.copytree(folder, twin)
                same = Child(setup, twin).wait() == expected[number] and same
            done += 1
            yield phase, len(list(folder.glob("step-*"))), same


def main(argv: list[str] | None = None) -> int:
    """Runs the trials, says how each went, and ends with a JSON line; 1 where a resumed run differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--setups", default="adamw:float32,muon:bfloat16,muon:float32")
    given = parser.parse_args(argv)
    setups = [Setup(*each.split(":"), given.steps) for each in given.setups.split(",")]
    # Loaded before the first fork; one thread, because threads do not survive a fork.
    import torch

    import quatrain.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    started, phases, with_checkpoint, wrong = time.monotonic(), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="quatrain-kills-") as place:
        for number, (phase, found, same) in enumerate(trials(given.kills, given.seed, setups, Path(place)), 1):
            phases[phase] += 1
            with_checkpoint += bool(found)
            wrong += not same
            if number % 10 == 0 or not same:
                print(f"{number} kills, {wrong} of them not resumed bit for bit", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "benchmark": "kills",
                "kills": given.kills,
                "resumed": 2 * given.kills,
                "bit_identical": given.kills - wrong,
                "all_bit_identical": wrong == 0,
                "killed_during": dict(phases),
                "with_checkpoint": with_checkpoint,
                "setups": given.setups,
                "steps": given.steps,
                "seed": given.seed,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
