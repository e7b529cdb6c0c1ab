"""A trainer's checkpoints: what goes into one, and how a run goes on from it, on any number of processes."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quatrain.core.atomic import disk_errors
from quatrain.core.errors import QuatrainError
from quatrain.training import checkpoints
from quatrain.training.optimizers import load_optimizer_tensors, optimizer_tensors
from quatrain.training.precision import DTYPES, dtype_name

if TYPE_CHECKING:
    from quatrain.training.trainer import Trainer


def save(trainer: Trainer) -> Path:
    """Writes a checkpoint of this moment. Raises QuatrainError on a full disk, the one before stays whole."""
    if trainer.folder is None or trainer.hooks.save is None:
        raise ValueError("a checkpoint needs a folder and a hook that saves the weights")
    parallel = trainer.parallel
    tensors = optimizer_tensors(trainer.weights.masters, trainer.optimizers)
    weights = trainer.hooks.save
    if parallel.shards:
        weights, tensors = _write_shards(trainer, trainer.folder, tensors), {}
    if parallel.is_main:
        best = trainer.best.step if trainer.keeps_best else None
        with trainer.weights.full():
            checkpoints.write(
                trainer.folder,
                trainer.steps_done,
                weights=weights,
                state=_state(trainer),
                tensors=tensors,
                protect=() if best is None else (best,),
            )
    parallel.barrier()
    return checkpoints.place(trainer.folder, trainer.steps_done)


def _state(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.steps_done,
        "size": trainer.size,
        "seconds": trainer.seconds,
        "stream": trainer.stream.state(),
        "seed": trainer.seed,
        "precision": dtype_name(trainer.dtype),
        "recent": list(trainer.recent),
        "steps": trainer.steps,
        "metrics": {name: value for name, value in trainer.metrics.items() if math.isfinite(value)},
        "guard": trainer.guard.state(),
        "best": trainer.best.state(),
        "scaler": None if trainer.scaler is None else trainer.scaler.state(),
        "sharded": trainer.parallel.shards,
        "accumulation": trainer.settings.accumulation,
    }


def find(trainer: Trainer) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Restores counters, and weights that are whole, from the newest whole checkpoint; returns what `restore` takes."""
    if trainer.folder is None or trainer.hooks.load is None:
        return None, {}
    # The first process looks, so that all go on from the same one, and the files are read through once.
    newest = checkpoints.newest_whole(trainer.folder, trainer.hooks.warn) if trainer.parallel.is_main else None
    step = -1 if newest is None else int(newest.name.removeprefix("step-"))
    step = int(trainer.parallel.agree([step])[0])
    if step < 0:
        return None, {}
    checkpoint = checkpoints.place(trainer.folder, step)
    state, tensors = checkpoints.read_state(checkpoint)
    if state["accumulation"] != trainer.settings.accumulation:
        raise QuatrainError(
            f"{checkpoint}: was written with {state['accumulation']} micro-batches a step, and this run has "
            f"{trainer.settings.accumulation}, so that its place in the data means another one. Set train.accumulation "
            f"= {state['accumulation']} and start a number of processes that divides it, or start over with --restart."
        )
    if not state.get("sharded"):
        trainer.hooks.load(checkpoint)
    trainer.steps_done, trainer.size, trainer.seconds = state["step"], state["size"], state["seconds"]
    trainer.dtype = DTYPES[state["precision"]]
    trainer.recent.extend(state["recent"])
    trainer.stream.load_state(state["stream"])
    trainer.metrics = state["metrics"]
    trainer.guard.load_state(state["guard"])
    trainer.best.load_state(state["best"])
    trainer.hooks.resumed(trainer.steps_done)
    return state, tensors


def restore(trainer: Trainer, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The optimizer's state, and weights that were written in parts."""
    if state.get("sharded"):
        _load_shards(trainer, checkpoints.place(trainer.folder, trainer.steps_done))  # type: ignore[arg-type]
    else:
        load_optimizer_tensors(trainer.weights.masters, trainer.optimizers, tensors)


def load_best(trainer: Trainer) -> None:
    """With checkpoints the best weights are in that of their step."""
    best = trainer.best.step
    if not (trainer.keeps_best and trainer.saves) or best in (None, trainer.steps_done) or trainer.hooks.load is None:
        return
    checkpoint = checkpoints.place(trainer.folder, best)  # type: ignore[arg-type]
    try:
        checkpoints.check(checkpoint)
    except QuatrainError as error:
        trainer.hooks.warn(f"{error} The last weights are kept instead of the best, of step {best}.")
        return
    if checkpoints.read_state(checkpoint)[0].get("sharded"):
        from quatrain.training.distributed import shards

        written = set(shards.names(checkpoint / shards.FOLDER))
        own = {name: parameter.detach() for name, parameter in trainer.model.named_parameters() if name in written}
        shards.load(own, checkpoint / shards.FOLDER)
    else:
        trainer.hooks.load(checkpoint)


def _write_shards(trainer: Trainer, folder: Path, tensors: dict[str, Tensor]) -> Callable[[Path], None]:
    """Every process writes its parts of weights and optimizer; returns what moves them into a checkpoint."""
    from quatrain.training.distributed import shards

    waiting = folder / ".shards"
    if trainer.parallel.is_main:
        with disk_errors(waiting):
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.mkdir(parents=True)
    trainer.parallel.barrier()
    with disk_errors(waiting):
        shards.save({name: master.detach() for name, master in trainer.weights.masters.items()} | tensors, waiting)
    trainer.parallel.barrier()
    return lambda checkpoint: os.replace(waiting, checkpoint / shards.FOLDER)


@torch.no_grad()
def _load_shards(trainer: Trainer, checkpoint: Path) -> None:
    """Weights and optimizer from the parts that any number of processes wrote."""
    from quatrain.training.distributed import shards

    masters = trainer.weights.masters
    found = dict[str, Tensor]()
    for name in shards.names(checkpoint / shards.FOLDER):
        owner, _, key = name.rpartition(":")
        found[name] = torch.zeros(()) if key == "step" else torch.zeros_like(masters[owner or name].detach())
    shards.load(found, checkpoint / shards.FOLDER)
    for name, master in masters.items():
        master.copy_(found[name])
    trainer.weights.publish()
    load_optimizer_tensors(masters, trainer.optimizers, {name: found[name] for name in found if ":" in name})
