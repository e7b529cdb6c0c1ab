"""The folder of a run: creating it, preparing the folder of a stage, and linking the final model."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quatrain.core import reading
from quatrain.core.atomic import disk_error, disk_errors, temporary_name, write_json
from quatrain.core.errors import InputError
from quatrain.runs.fingerprints import Mark
from quatrain.runs.settings import RecipeSettings

MAX_FILE_BYTES = 256 * 2**20
"""Largest JSON file of a run that is read; samples and scores take some megabytes."""

NUMBER = (int, float)

TYPES: dict[str, type | tuple[type, ...]] = {
    "finished": bool, "has_model": bool, "compressed": bool, "stages": list, "inputs": dict, "seconds": NUMBER,
    "work": str, "fingerprint": str, "kind": str, "name": str, "scores": dict, "samples": list, "notes": list,
    "perplexity": NUMBER, "validation_loss": NUMBER, "tokens": NUMBER, "flops": NUMBER, "parameters": NUMBER,
    "trainable_parameters": NUMBER, "model_bytes": NUMBER, "peak_memory_bytes": NUMBER, "energy": dict, "gates": list,
}  # fmt: skip
"""Types of the keys in the files that a run writes; each may be null."""


@dataclass
class Run:
    """A finished run. `done_before` says that an earlier call had already finished it."""

    folder: Path
    recipe: RecipeSettings
    results: list[dict[str, Any]] = field(default_factory=list)
    done_before: bool = False

    @property
    def model(self) -> Path | None:
        """The final model's folder, if a stage has made a model."""
        path = self.folder / "model"
        return path if path.is_dir() else None

    @property
    def report(self) -> Path | None:
        """The report, one HTML file."""
        path = self.folder / "report.html"
        return path if path.is_file() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file of a run; None if there is no file, or it is not one that a run writes."""
    try:
        content: dict[str, Any] = reading.read_json(path, max_bytes=MAX_FILE_BYTES)
    except InputError:
        return None
    valid = all(content.get(key) is None or isinstance(content[key], kind) for key, kind in TYPES.items())
    return content if valid else None


def free_name(folder: Path) -> str:
    """A free name for another run beside this one: `quickstart-2`."""
    number = 2
    while (folder.parent / f"{folder.name}-{number}").exists():
        number += 1
    return f"{folder.name}-{number}"


def make_folder(folder: Path) -> None:
    """Create a run's folder, or raise InputError that says why this is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / "writable")
        probe.write_bytes(b"")
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: a file is in the way of this folder; move it, or use --runs-dir or name="
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_error(error, folder) from error
        raise InputError(
            f"{folder} cannot be written to ({error.strerror}); change its permissions, or give another "
            "folder with --runs-dir"
        ) from error


def prepare(folder: Path, mark: Mark) -> bool:
    """Prepare a stage's folder. True if it holds an interrupted attempt of the same work, to be resumed."""
    started = read_json(folder / "started.json")
    with disk_errors(folder):
        if started and started.get("work") == mark.work:
            _remove_unfinished(folder)
            write_json(folder / "started.json", {"work": mark.work})
            return True
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    write_json(folder / "started.json", {"work": mark.work})
    return False


def _remove_unfinished(folder: Path) -> None:
    """Remove output that may be incomplete; checkpoints and cached data stay."""
    finished = (folder / "result.json").exists()
    (folder / "result.json").unlink(missing_ok=True)
    for name in () if finished else ("model", "tokenizer"):
        shutil.rmtree(folder / name, ignore_errors=True)


def written_folder(stage_folder: Path, name: str) -> Path | None:
    """The folder of this name that a stage has written; None if it has not."""
    path = stage_folder / name
    return path if path.is_dir() else None


def link_folder(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`. Large files are hard links where the file system supports them."""
    fresh, old = target.with_name(".model.new"), target.with_name(".model.old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, fresh, copy_function=_link_or_copy)
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    if os.path.getsize(source) > 1_000_000:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
