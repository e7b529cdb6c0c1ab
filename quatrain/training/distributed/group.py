"""The process group that torchrun starts, and the choice of the parallel strategy."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

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


def gather(value: Any) -> list[Any]:
    """A value of JSON from every process, in the order of their ranks; [value] for a single process.

    Floats keep their exact values.
    """
    _, size = process_number()
    if size == 1:
        return [value]
    join()
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(size)]
    distributed.all_gather(sizes, torch.tensor([len(own)]))
    longest = max(int(each) for each in sizes)
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
    distributed.all_gather(parts, torch.nn.functional.pad(own, (0, longest - len(own))))
    return [json.loads(part[: int(count)].numpy().tobytes()) for part, count in zip(parts, sizes, strict=True)]


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
