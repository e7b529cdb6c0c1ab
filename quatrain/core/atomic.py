"""Atomic file writes: a kill, a crash or a full disk never leaves an incomplete file.

A file is written under a temporary name in the same folder, flushed to disk and renamed over the old one; `os.replace`
within one folder is atomic on every system that Python runs on (POSIX rename(2)).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.wording import format_bytes

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_TEMPORARY_SUFFIX = ".partial"
_LEFTOVER = re.compile(r"\..+\.([0-9a-f]{8}|[0-9a-f]{12})\.partial")


def free_bytes(path: str | Path) -> int | None:
    """Free bytes on the disk of `path` (which need not exist yet); None if unknown."""
    place = Path(path).absolute()
    for folder in (place, *place.parents):
        if os.path.exists(folder):  # False, not an error, for a name that is too long
            with contextlib.suppress(OSError):
                return shutil.disk_usage(folder).free
            return None
    return None


def disk_error(error: OSError, path: str | Path) -> QuatrainError:
    """The error for a failed write to `path`: what happened, the free space, and what to do."""
    free = free_bytes(path)
    room = "" if free is None else f" ({format_bytes(free)} free on that disk)"
    if error.errno in _FULL:
        return QuatrainError(
            f"cannot write {path}: the disk is full{room}. Free some space or choose another folder, then run the same "
            "command again: what was finished is kept."
        )
    if error.errno in _FORBIDDEN:
        return QuatrainError(
            f"cannot write {path}: {error.strerror or 'permission denied'}{room}. "
            "Choose a folder that you may write to, or change its permissions."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return QuatrainError(
            f"cannot write {path}: {error.strerror}. "
            "Something of that name is in the way; move it or choose another place."
        )
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return InputError(f"cannot write {path}: {error.strerror}. Choose another name.")
    return QuatrainError(f"cannot write {path}: {error.strerror or error}{room}.")


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn an OSError in the block into the QuatrainError of `disk_error(error, path)`.

    Only for blocks that do nothing but write: any other OSError would be blamed on `path`.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's directory entries to disk, so that a rename survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """A new name beside `path`, for what takes its place when it is whole. `is_leftover` knows it after a kill."""
    return path.parent / f".{path.name[:64]}.{secrets.token_hex(6)}{_TEMPORARY_SUFFIX}"


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that takes its place at `path` only when the block ends well.

    `mode` is "w" (UTF-8 text, "\\n" line ends) or "wb". The folder is made where it is absent. When the block
    raises, the old file stays as it was and the temporary one is removed.

    Raises QuatrainError, with the path, the free space and the remedy, for a full disk or a folder that cannot
    be written to.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode {mode!r}: allowed are 'w' and 'wb'")
    path = Path(path)
    temporary: Path | None = None
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        with open(temporary, mode.replace("w", "x"), encoding=encoding, newline=newline) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in _FULL or error.filename is None or _concerns(error, path, temporary):
            raise disk_error(error, path) from error
        raise
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _concerns(error: OSError, path: Path, temporary: Path | None) -> bool:
    """Whether an OSError names our file, its temporary or its folder, not something the caller's block read."""
    names = {str(name) for name in (error.filename, error.filename2) if name is not None}
    ours = {str(path), *(str(parent) for parent in path.parents)}
    if temporary is not None:
        ours.add(str(temporary))
    return bool(names & ours) or any(name.endswith(_TEMPORARY_SUFFIX) for name in names)


def is_leftover(path: str | Path) -> bool:
    """Whether a file or folder has the name of a temporary one, which a killed process may have left."""
    return _LEFTOVER.fullmatch(os.path.basename(path)) is not None


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder and below it.

    Only for a folder that this process has locked: a running process needs its own.
    """
    for place, folders, names in os.walk(folder):
        for name in filter(is_leftover, names):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(place, name))
        for name in filter(is_leftover, folders):
            shutil.rmtree(os.path.join(place, name), ignore_errors=True)
        folders[:] = [name for name in folders if not is_leftover(name)]


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_write(path) as handle:
        handle.write(text)


def write_json(path: str | Path, value: object, *, indent: int | None = 2) -> None:
    """Write `value` to `path` as JSON (UTF-8, readable, a newline at the end), whole or not at all.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    write_text(path, text + "\n")
