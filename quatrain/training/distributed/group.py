"""The processes that torchrun has started: their group, and what each of them is for a way to train together."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import distributed

from quatrain.core.errors import InputError
from quatrain.core.processes import environment_number, process_number
from quatrain.training.distributed.base import ParallelStrategy, SingleProcess

MODES = ("auto", "ddp", "zero1", "zero2", "zero3", "hybrid")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others. torchrun ends all when one fails, so that none waits in vain."""


def join() -> None:
    """Makes this process one of the group, once: over gloo on the CPU, over NCCL between GPUs."""
    if distributed.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"Several processes are asked for (WORLD_SIZE = {os.environ.get('WORLD_SIZE')}), and {', '.join(missing)} "
            "is not set. Start them with torchrun: torchrun --nproc-per-node 2 -m quatrain run RECIPE"
        )
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(environment_number("LOCAL_RANK"))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Ends this process's part in the group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def make_parallel(mode: str = "auto", device: torch.device | str = "cpu") -> ParallelStrategy:
    """How this process trains with the others: alone where there is no other.

    `mode`: `ddp`, every process has the whole model and all exchange gradients; `zero1` to `zero3`, each holds a part
    of the optimizer's state, of the gradients too, of the weights too; `hybrid`, parts within a machine and copies
    between machines; `auto` is `ddp`. Raises InputError for another one.
    """
    if mode not in MODES:
        raise InputError(f"parallel: {mode!r}; must be one of {', '.join(MODES)}.")
    _, size = process_number()
    if size == 1:
        return SingleProcess()
    device = torch.device(device)
    if device.type == "mps":
        raise InputError("Several processes train on CUDA or on the CPU, not on Apple's GPU; set train.device = cpu.")
    join()
    if mode in ("auto", "ddp"):
        from quatrain.training.distributed.replicated import Replicated

        return Replicated(device)
    from quatrain.training.distributed.sharded import Sharded

    return Sharded(device, mode)
