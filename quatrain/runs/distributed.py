"""A run by several processes that torchrun started: the first one runs it, the others join it where it trains.

Data is prepared, models are measured and files are written by the first process alone.
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
from quatrain.runs.folder import made
from quatrain.runs.inputs import beginning
from quatrain.runs.recipe import Recipe
from quatrain.runs.stage import StageContext, stage_name

END = -1
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL")
"""What gloo and NCCL say to a process whose other one is gone."""


@contextmanager
def losses_explained() -> Iterator[None]:
    """What a process among several fails of: the loss of another one in words, its own faults with its number."""
    rank, size = process_number()
    try:
        yield
    except QuatrainError as error:
        if rank:
            raise QuatrainError(f"process {rank}: {error}") from error
        raise
    except RuntimeError as error:
        if size < 2 or not any(words in str(error) for words in LOST):
            raise
        raise QuatrainError(
            f"process {rank} of {size} has lost another one and cannot go on alone. The message of that one says why; "
            "the same command goes on from the last checkpoint."
        ) from error


def divided(settings: Settings, size: int) -> Settings:
    """A stage whose steps have a micro-batch for each process: `accumulation` raised to a multiple of their number."""
    train: Any = getattr(settings, "train", None)
    if train is None or train.accumulation % size == 0:
        return settings
    parts = -(-train.accumulation // size) * size
    return settings.model_copy(update={"train": train.model_copy(update={"accumulation": parts})})


def trains_together(settings: Settings) -> bool:
    """Whether all processes take part in a stage."""
    return settings.kind in ("pretrain", "finetune")  # type: ignore[attr-defined]


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


def follow(recipe: Recipe, folder: Path) -> None:
    """What a process other than the first does: trains with it, stage after stage, until it says that it is done."""
    import torch

    from quatrain.runs.learning import attach, train
    from quatrain.runs.stages import finetune, pretrain
    from quatrain.training.distributed.group import join, leave
    from quatrain.training.distributed.replicated import MultiProcess

    join()
    while (index := int(MultiProcess(torch.device("cpu")).agree([0.0])[0])) != END:
        context = context_of(recipe, folder, index)
        settings: Any = divided(recipe.stage[index], process_number()[1])
        learning = (pretrain if settings.kind == "pretrain" else finetune).setup(settings, context)
        save, load = attach(learning, context)
        train(learning, context, save=save, load=load)
    leave()


def context_of(recipe: Recipe, folder: Path, index: int) -> StageContext:
    """The context of a stage, from what the stages before it have left on the disk."""
    model = beginning(recipe)
    tokenizer = Path(recipe.tokenizer.path) if recipe.tokenizer.path else model
    for number in range(index):
        before = folder / "stages" / stage_name(number, recipe.stage[number])
        if not (before / "result.json").is_file():
            raise QuatrainError(f"{before} is not to be seen from this machine; all need the same run folder.")
        tokenizer = made(before, "tokenizer") or tokenizer
        model = made(before, "model") or model
    name = stage_name(index, recipe.stage[index])
    return StageContext(
        recipe, folder, folder / "stages" / name, index, name, model, tokenizer, recipe.seed, SilentReporter()
    )
