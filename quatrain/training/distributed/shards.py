"""Checkpoints of parted weights: PyTorch's distributed checkpoint, its tensors in safetensors files, nothing pickled.

Each process writes its parts; any number of processes reads them back, one alone too.
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
"""Where a checkpoint keeps its parts."""


def save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes tensors by name, each process its parts. All processes call it, with the same names.

    Raises OSError in all of them where one cannot write.
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
            said = "; ".join(f"process {rank}: {cause}" for rank, cause in causes.items())
            raise OSError(errno.ENOSPC if full else errno.EIO, said) from error
    # Every process sees to its own files; those of other machines may not be seen from here.
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def names(folder: Path) -> list[str]:
    """The names of the tensors in a folder of parts."""
    import torch.distributed.checkpoint as dcp

    return list(dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


@torch.no_grad()
def load(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Reads into these tensors, parted or whole; every process of a group calls it, or one process alone."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not distributed.is_initialized())
