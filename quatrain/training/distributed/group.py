"""The process group that torchrun starts, and the choice of the parallel strategy."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import distributed

from quatrain.core.errors import InputError
from quatrain.core.processes import environment_number, process_number
from quatrain.training.distributed.base import ParallelStrategy

MODES = ("auto", "ddp", "zero1", "zero2", "zero3", "hybrid")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others. torchrun ends all processes when one fails."""


def join() -> None:
    """Join the process group, once: gloo on the CPU, NCCL between GPUs."""
    if distributed.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE = {os.environ.get('WORLD_SIZE')} asks for several processes, but {', '.join(missing)} "
            "is not set. Start them with torchrun: torchrun --nproc-per-node 2 -m quatrain run RECIPE"
        )
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(environment_number("LOCAL_RANK"))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Leave the process group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def make_parallel(mode: str = "auto", device: torch.device | str = "cpu") -> ParallelStrategy:
    """The parallel strategy of this process.

    `mode`: `ddp` replicates the model and exchanges gradients; `zero1`, `zero2` and `zero3` shard the optimizer states,
    then also gradients, then also weights; `hybrid` shards within a machine and replicates between machines; `auto`
    means `ddp`. Raises InputError for other modes.
    """
    if mode not in MODES:
        raise InputError(f"parallel: {mode!r}; must be one of {', '.join(MODES)}.")
    _, size = process_number()
    if size == 1:
        return ParallelStrategy()
    device = torch.device(device)
    if device.type == "mps":
        raise InputError("Several processes train on CUDA or the CPU, not on Apple's GPU; set train.device = cpu.")
    join()
    if mode in ("auto", "ddp"):
        from quatrain.training.distributed.replicated import Replicated

        return Replicated(device)
    from quatrain.training.distributed.sharded import Sharded

    return Sharded(device, mode)
