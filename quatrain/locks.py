"""One process at a time in a run's folder, by a lock file that names its holder.

The file is created exclusively (`O_EXCL`), which every file system offers, unlike `flock`. A lock whose
process is dead is taken over; a process is known by its number and, where the system tells it, the time it
started, so that a number that was given out again is not mistaken for the holder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError

LOCK_NAME = ".lock"

_GRACE_SECONDS = 2.0  # a lock file without content this long after its creation belongs to a killed process


class FolderLock:
    """Held from `__enter__` to `__exit__`; raises QuatrainError where another living process holds it."""

    def __init__(self, folder: Path):
        self.path = folder / LOCK_NAME
        self.token = secrets.token_hex(8)

    def __enter__(self) -> FolderLock:
        for _ in range(20):
            if self._create():
                return self
            holder = self._read()
            if holder is None:
                continue
            if not self._is_stale(holder):
                raise QuatrainError(_taken_message(self.path, holder))
            self._remove_stale(holder)
        raise QuatrainError(f"{self.path}: the lock keeps changing hands; try again")

    def __exit__(self, *exc: object) -> None:
        holder = self._read()
        if holder is not None and holder.get("token") == self.token:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        content = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process_started": process_start(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": self.token,
        }
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        return True

    def _read(self) -> dict[str, Any] | None:
        """The holder; an empty table where the file says nothing; None where there is no file."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _is_stale(self, holder: dict[str, Any]) -> bool:
        if not holder:
            with contextlib.suppress(FileNotFoundError):
                age = time.time() - self.path.stat().st_mtime
                if age < _GRACE_SECONDS:
                    time.sleep(0.2)
                    return False if self._read() else age + 0.2 >= _GRACE_SECONDS
            return True
        if holder.get("host") != socket.gethostname():
            return False
        pid = holder.get("pid")
        if not isinstance(pid, int) or not process_is_alive(pid):
            return True
        started = holder.get("process_started")
        return started is not None and started != process_start(pid)

    def _remove_stale(self, holder: dict[str, Any]) -> None:
        """Move the stale file away; put it back where another process has replaced it in the meantime."""
        aside = self.path.with_name(f"{LOCK_NAME}.{self.token}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        moved = FolderLock.__new__(FolderLock)
        moved.path = aside
        if moved._read() != holder:
            with contextlib.suppress(OSError):
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)


def _taken_message(path: Path, holder: dict[str, Any]) -> str:
    if not holder:
        return f"{path.parent} is in use by a process that has just started; try again"
    where = "" if holder.get("host") == socket.gethostname() else f" on {holder.get('host')}"
    return (
        f"{path.parent} is in use by process {holder.get('pid')}{where} since {holder.get('since')}. Wait for it to "
        f"end, or give this run another name (name=other). If no such process runs any more, remove {path}."
    )


def process_is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _windows_process_is_alive(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _windows_process_is_alive(pid: int) -> bool:
    """By the exit code of its handle: `os.kill` would end the process on Windows."""
    import ctypes

    query_limited_information, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active


def process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot (Linux); None where that is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return f"{boot}:{stat.rpartition(')')[2].split()[19]}"
