"""Checkpoints: a model (or adapter) folder, `training_state/`, and a manifest with the SHA-256 of every file.

A checkpoint is written to a temporary folder, flushed and renamed, so that a kill or a full disk at any moment leaves
the previous checkpoint intact. A checkpoint that does not match its manifest is refused, and the wrong file is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from quatrain.core.atomic import atomic_write, disk_errors, sync_folder, write_json, write_text
from quatrain.core.errors import QuatrainError
from quatrain.models.io.safetensors_writer import write_safetensors

STATE, TENSORS, MANIFEST = "training_state/state.json", "training_state/optimizer.safetensors", "manifest.json"
DATA = "training_state/data.safetensors"
"""The tensors of a stream that makes its data during the run, such as rollouts."""


def write(
    folder: Path,
    step: int,
    *,
    weights: Callable[[Path], None],
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    data: dict[str, Tensor] | None = None,
    keep: int = 2,
    protect: Collection[int] = (),
) -> Path:
    """Write the checkpoint of a step under `folder`, then remove all but the newest `keep` and the steps in `protect`.

    `weights(place)` writes the model or adapter files; `data` are the tensors of the stream. Raises QuatrainError if
    the disk is full; earlier checkpoints stay.
    """
    final = place(folder, step)
    temporary = folder / f".{final.name}.partial"
    try:
        with disk_errors(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "training_state").mkdir(parents=True)
            weights(temporary)
            with atomic_write(temporary / TENSORS, "wb") as file:
                write_safetensors(file, tensors)
            if data:
                with atomic_write(temporary / DATA, "wb") as file:
                    write_safetensors(file, data)
            write_json(temporary / STATE, state)
            write_text(temporary / MANIFEST, _manifest_text(_manifest(temporary)))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    prune(folder, keep=keep, protect=protect)
    return final


def prune(folder: Path, *, keep: int = 2, protect: Collection[int] = ()) -> None:
    """Remove all checkpoints but the newest `keep` and the steps in `protect`, and what was never finished."""
    kept = {place(folder, each) for each in protect}
    stale = [old for old in found(folder)[:-keep] if old not in kept]
    for old in (*stale, *folder.glob(".step-*.partial")):
        shutil.rmtree(old, ignore_errors=True)


def place(folder: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def found(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first, including damaged ones."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def check(checkpoint: Path) -> None:
    """Raises QuatrainError that names every file that is missing, truncated or changed."""
    problems = []
    for name, expected in _read_manifest(checkpoint).items():
        path = checkpoint / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{name}: has {path.stat().st_size} bytes instead of {expected['bytes']}")
        elif _sha256(path) != expected["sha256"]:
            problems.append(f"{name}: its SHA-256 does not match the manifest")
    if problems:
        raise QuatrainError(f"{checkpoint}: this checkpoint is damaged:", problems)


def newest_intact(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that matches its manifest, or None. Warns about damaged checkpoints."""
    for checkpoint in reversed(found(folder)):
        try:
            check(checkpoint)
        except QuatrainError as error:
            warn(f"{error} An earlier checkpoint is used instead, if there is one.")
            continue
        return checkpoint
    return None


def read_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON state and the optimizer tensors of a checkpoint."""
    from safetensors.torch import load_file

    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state, load_file(checkpoint / TENSORS)


def read_data(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of the stream; none if it had no tensors."""
    from safetensors.torch import load_file

    return load_file(checkpoint / DATA) if (checkpoint / DATA).is_file() else {}


def remove(folder: Path) -> None:
    """Remove all checkpoints of a folder, once the run has finished."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The entries of the manifest by file. Raises QuatrainError if a byte of the manifest has changed."""
    try:
        text = (checkpoint / MANIFEST).read_bytes().decode("utf-8")
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        intact = text == _manifest_text(files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise QuatrainError(f"{checkpoint}: {MANIFEST} is missing or unreadable ({error}).") from error
    if not intact:
        raise QuatrainError(f"{checkpoint}: {MANIFEST} is damaged: its SHA-256 does not match its content.")
    return files


def _manifest_text(files: dict[str, dict[str, Any]]) -> str:
    """The text of the manifest, which ends with its own SHA-256."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=2) + "\n"


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
