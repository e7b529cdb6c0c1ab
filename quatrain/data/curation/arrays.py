"""Arrays on disk as raw bytes; the name of a file says their type and width: `minima.uint32x128.bin`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.atomic import atomic_write

Array = np.ndarray[Any, Any]
SUFFIX = ".bin"


def array_path(folder: Path, name: str, array: Array) -> Path:
    """Where an array (N,) or (N, W) of this name is kept."""
    width = "" if array.ndim == 1 else f"x{array.shape[1]}"
    return folder / f"{name}.{array.dtype.name}{width}{SUFFIX}"


def write_array(folder: Path, name: str, array: Array) -> Path:
    """Writes an array whole or not at all; returns its path."""
    path = array_path(folder, name, array)
    with atomic_write(path, "wb") as handle:
        handle.write(np.ascontiguousarray(array).tobytes())
    return path


def read_array(path: Path) -> Array:
    """An array that is mapped from disk, read-only."""
    dtype, _, width = path.name.removesuffix(SUFFIX).rpartition(".")[2].partition("x")
    if path.stat().st_size == 0:
        flat: Array = np.empty(0, dtype=dtype)
    else:
        flat = np.memmap(path, dtype=dtype, mode="r")
    return flat.reshape(-1, int(width)) if width else flat


def named_array(folder: Path, name: str) -> Array:
    """The array of this name in a folder."""
    return read_array(next(folder.glob(f"{name}.*{SUFFIX}")))


def join_arrays(folder: Path, name: str, parts: Iterator[Array]) -> Array:
    """Parts (N, W) one after the other in one file, mapped from it; only a part is in memory."""
    path: Path | None = None
    partial = folder / f"{name}.joining"
    folder.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as handle:
        for part in parts:
            path = path or array_path(folder, name, part)
            handle.write(np.ascontiguousarray(part).tobytes())
    if path is None:
        raise ValueError("no parts to join")
    partial.replace(path)
    return read_array(path)
