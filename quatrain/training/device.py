"""Where a model trains: the GPU that is there, or the CPU."""

from __future__ import annotations

import os

import torch

from quatrain.errors import InputError

DEVICES = ("auto", "cuda", "mps", "cpu")


def training_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else Apple's GPU, else the CPU; of several GPUs the one of this process.

    Raises InputError for a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in DEVICES:
        raise InputError(f"train.device: {name!r}; must be one of {', '.join(DEVICES)}.")
    if name == "auto":
        name = next(each for each in ("cuda", "mps", "cpu") if there[each])
    if not there[name]:
        raise InputError(
            f"train.device: {name}; this machine has none that PyTorch {torch.__version__} can use. Take auto or cpu."
        )
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
    return torch.device(name)
