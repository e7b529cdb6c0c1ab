"""Some steps of a stage's training, taken for what they cost: run as a program, so that its memory is its own.

    python -m quatrain.runs.trial FOLDER INDEX

FOLDER is what `quatrain.runs.preflight` has prepared. Ends with a line of JSON: seconds of the whole training, the
peak of memory by part, tokens per second; or "error".
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quatrain.core.errors import QuatrainError
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import loads

WARM, LEAST, SECONDS, MOST = 2, 4, 6.0, 60.0
"""Steps that do not count; steps that do, at least; seconds of them; seconds after which one is enough."""


def trial(folder: Path, index: int) -> dict[str, Any]:
    """Takes some steps, a checkpoint and a validation of a stage."""
    from quatrain.core.process_memory import reset_peak_memory
    from quatrain.planning.machine import choose_device
    from quatrain.runs.learning import attach
    from quatrain.runs.preflight import check_context
    from quatrain.runs.stages import spec_of
    from quatrain.training.trainer import CHECKPOINT_SECONDS, Hooks, Trainer

    recipe = loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    context = check_context(recipe, folder, index, SilentReporter())
    prepare = spec_of(recipe.stage[index]).prepare
    learning: Any = prepare(recipe.stage[index], context) if prepare is not None else None
    save, load = attach(learning, context)
    wanted = learning.settings
    took: list[tuple[float, int]] = []
    model = learning.model.to(choose_device(wanted.device))
    with tempfile.TemporaryDirectory(prefix="quatrain-trial-") as place:
        trainer = Trainer(
            model,
            learning.objective,
            learning.stream,
            wanted.model_copy(update={"evaluate_every": 0, "patience": 0, "keep": "last", "checkpoint_every": 10**9}),
            steps=learning.steps,
            seed=context.seed,
            folder=Path(place),
            hooks=Hooks(save=save, load=load),
        )
        written = 0.0
        reset_peak_memory()
        began = time.perf_counter()
        with trainer.ready():
            while trainer.steps_done < learning.steps:
                start, before = time.perf_counter(), trainer.size
                trainer.step()
                now = time.perf_counter()
                if trainer.steps_done > WARM or now - began > MOST or learning.steps <= WARM:
                    took.append((now - start, trainer.size - before))
                counted = sum(seconds for seconds, _ in took)
                if took and ((len(took) >= LEAST and counted > SECONDS) or now - began > MOST):
                    break
                if trainer.steps_done == WARM + 1 and _writes(learning, took):
                    start = time.perf_counter()
                    trainer.save_checkpoint()
                    written = time.perf_counter() - start
        validation = 0.0
        if learning.validate is not None:
            start = time.perf_counter()
            learning.validate(model)
            validation = time.perf_counter() - start
    from quatrain.training import memory

    trainer.memory["peak"] = memory.peak(model.device)
    per_step = _per_step(learning, took)
    steps = learning.steps * per_step
    validations = learning.steps // wanted.evaluate_every if wanted.evaluate_every else 0
    validations += bool(learning.validate) and (not wanted.evaluate_every or learning.steps % wanted.evaluate_every > 0)
    saved = steps / CHECKPOINT_SECONDS if not wanted.checkpoint_every else learning.steps / wanted.checkpoint_every
    tokens = sum(count for _, count in took)
    return {
        "seconds": steps + validations * validation + int(saved) * written,
        "seconds_per_step": per_step,
        "tokens_per_second": tokens / sum(seconds for seconds, _ in took),
        "precision": str(trainer.dtype).removeprefix("torch."),
        "memory": trainer.memory,
    }


def _writes(learning: Any, took: list[tuple[float, int]]) -> bool:
    """Whether the run will write a checkpoint on its way."""
    from quatrain.training.trainer import CHECKPOINT_SECONDS

    every = learning.settings.checkpoint_every
    if every:
        return every < learning.steps
    return learning.steps * statistics.mean(seconds for seconds, _ in took) > CHECKPOINT_SECONDS


def _per_step(learning: Any, took: list[tuple[float, int]]) -> float:
    """Seconds of a step: the median for each token, times the tokens that a step of this stream has."""
    per_token = statistics.median(seconds / max(1, tokens) for seconds, tokens in took)
    stream, parts = learning.stream, learning.settings.accumulation
    if not hasattr(stream, "lengths"):
        return per_token * statistics.mean(tokens for _, tokens in took)
    batches = stream.plan(0)
    mean = sum(len(batch) * int(stream.lengths[batch].max()) for batch in batches) / len(batches)
    seen = statistics.mean(tokens for _, tokens in took)
    return per_token * max(mean * parts, 0.2 * seen)


def main() -> None:
    """The program."""
    try:
        told = trial(Path(sys.argv[1]), int(sys.argv[2]))
    except QuatrainError as error:
        told = {"error": " ".join([str(error.message), *error.problems])}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
