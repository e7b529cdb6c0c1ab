"""A run by several processes that torchrun started: the first one runs it, the others join it to train.

The first process alone prepares data, evaluates models and writes files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quatrain.core.errors import QuatrainError
from quatrain.core.processes import process_number
from quatrain.core.progress import SilentReporter
from quatrain.core.settings import Settings
from quatrain.runs.contexts import stage_context
from quatrain.runs.settings import RecipeSettings
from quatrain.runs.stages import spec_of

END = -1
CONNECTION_ERRORS = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL",
)  # fmt: skip
"""Parts of the messages of gloo and NCCL in a process whose peer has ended."""


@contextmanager
def losses_explained() -> Iterator[None]:
    """Explains the errors of one process among several: the loss of a peer in words, its own errors with its number."""
    rank, size = process_number()
    try:
        yield
    except QuatrainError as error:
        if rank:
            raise QuatrainError(f"process {rank}: {error}") from error
        raise
    except RuntimeError as error:
        if size < 2 or not any(words in str(error) for words in CONNECTION_ERRORS):
            raise
        raise QuatrainError(
            f"process {rank} of {size} has lost another process and cannot continue alone. The message of that process "
            "says why; the same command resumes from the last checkpoint."
        ) from error


def divided(settings: Settings, size: int) -> Settings:
    """A stage whose steps have a micro-batch for each process: `accumulation` raised to a multiple of their number."""
    train: Any = getattr(settings, "train", None)
    if train is None or train.accumulation % size == 0:
        return settings
    parts = -(-train.accumulation // size) * size
    return settings.model_copy(update={"train": train.model_copy(update={"accumulation": parts})})


def announce(index: int) -> None:
    """The first process tells the others which stage trains now, or END."""
    import torch

    from quatrain.training.distributed.group import join
    from quatrain.training.distributed.replicated import MultiProcess

    join()
    MultiProcess(torch.device("cpu")).agree([float(index)])


def dismiss() -> None:
    """The first process tells the others that the run is done."""
    from quatrain.training.distributed.group import leave

    if process_number()[1] > 1:
        announce(END)
        leave()


def follow(recipe: RecipeSettings, folder: Path) -> None:
    """Runs a process other than the first: it trains each stage that the first one announces, until the run ends."""
    import torch

    from quatrain.runs.learning import attach, train
    from quatrain.training.distributed.group import join, leave
    from quatrain.training.distributed.replicated import MultiProcess

    join()
    while (index := int(MultiProcess(torch.device("cpu")).agree([0.0])[0])) != END:
        context = stage_context(recipe, folder, index, SilentReporter())
        settings: Any = divided(recipe.stage[index], process_number()[1])
        job = spec_of(settings).training_job(settings, context)
        save, load = attach(job, context)
        train(job, context, save=save, load=load)
    leave()
