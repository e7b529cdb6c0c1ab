"""Checkpoints of sharded weights: PyTorch's distributed checkpoint with safetensors files, without pickle.

Each process writes its shards; any number of processes, also a single one, can read them.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, distributed

FOLDER = "training_state/shards"
"""The folder of the shards in a checkpoint."""


def save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write named tensors; each process writes its shards. All processes must call it with the same names.

    Raises OSError in every process if one of them cannot write.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = dcp.HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
        try:
            dcp.save(dict(tensors), storage_writer=writer)
        except CheckpointException as error:
            causes = {rank: cause for rank, (cause, _) in error.failures.items()}
            full = any("No space left" in str(cause) for cause in causes.values())
            message = "; ".join(f"process {rank}: {cause}" for rank, cause in causes.items())
            raise OSError(errno.ENOSPC if full else errno.EIO, message) from error
    # Every process flushes the files that it can see; those of other machines may not be visible.
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def names(folder: Path) -> list[str]:
    """The names of the tensors in a folder of shards."""
    import torch.distributed.checkpoint as dcp

    return list(dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


@torch.no_grad()
def load(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read into these tensors, sharded or not. All processes of a group call it, or a single process."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not distributed.is_initialized())
