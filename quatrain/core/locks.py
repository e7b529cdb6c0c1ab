"""One process at a time in a run's folder.

The lock is the system's own (`filelock`), so that it ends with its process, however that ends. A file beside it says
who holds it, for the message.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.reading import read_json

LOCK_NAME = ".lock"
"""Prefix of the lock's files in a run folder."""


class FolderLock:
    """An exclusive lock on a folder, as a context manager. Raises QuatrainError if another process holds it."""

    def __init__(self, folder: Path):
        self.path = folder / LOCK_NAME
        self.holder = folder / f"{LOCK_NAME}.json"
        self._lock: BaseFileLock = FileLock(self.path, timeout=0)

    def __enter__(self) -> FolderLock:
        try:
            self._acquire()
        except Timeout as error:
            raise QuatrainError(self._taken()) from error
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):
            self.holder.write_text(json.dumps(about), encoding="utf-8")
        return self

    def __exit__(self, *exc: object) -> None:
        for path in (self.holder, self.path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except NotImplementedError:  # the file system has no locks: use an exclusively created file
            self._lock = SoftFileLock(self.path, timeout=0)
            self._lock.acquire()

    def _taken(self) -> str:
        try:
            about = read_json(self.holder)
        except InputError:
            return f"{self.path.parent} is in use by a process that has just started; try again"
        where = "" if about.get("host") == socket.gethostname() else f" on {about.get('host')}"
        return (
            f"{self.path.parent} is in use by process {about.get('pid')}{where} since {about.get('since')}. Wait for "
            "it to end, or give this run another name (name=other)"
        )
