"""A work in a process of its own, forked from one that has imported everything; killed by the clock or by itself."""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killing import Work, files_of

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MOVING = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "sqlite3.connect": 1}
"""Audited events that change a folder, with the number of paths that they begin with."""
NAME = 40
SHARED = struct.Struct(f"i{NAME}s")
"""Written to shared memory, where a kill does not reach it: the events so far, and what the command is at."""


@dataclass(frozen=True)
class Kill:
    """When a process dies: after some seconds, or just before its n-th change of the target's files."""

    seconds: float | None = None
    change: int | None = None


class Child:
    """The command of a work on a folder. With `reads`, a reader opens the target before the command is given."""

    def __init__(self, work: Work, folder: Path, variant: str, *, kill: Kill | None = None, reads: bool = False):
        self.folder, self.kill = folder, kill or Kill()
        self.result, self.log = (folder.parent / f"{folder.name}.{ending}" for ending in ("result.json", "log"))
        self.result.unlink(missing_ok=True)
        self._memory = mmap.mmap(-1, SHARED.size)
        self._note("start")
        self.pid = os.fork()
        if self.pid:
            return
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            found: dict[str, Any] = {"seen": work.read(folder, variant)} if reads else {}
            sys.addaudithook(self._watch(work))
            work.run(folder, variant, self._note)
            self._note("end")
            self.kill = Kill()
            found["changes"] = self.changes
            found["files"], found["outcome"] = files_of(folder), work.outcome(folder, variant)
            self.result.write_text(json.dumps(found))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    @property
    def changes(self) -> int:
        """How often the target's files have been changed."""
        return int(SHARED.unpack_from(self._memory)[0])

    @property
    def phase(self) -> str:
        """What the command is at."""
        name: bytes = SHARED.unpack_from(self._memory)[1]
        return name.rstrip(b"\0").decode()

    def _note(self, phase: str, more: int = 0) -> None:
        SHARED.pack_into(self._memory, 0, self.changes + more, phase.encode()[:NAME])

    def _watch(self, work: Work) -> Any:
        """An audit hook that counts changes, and dies where the kill says so: before the change is made."""
        root = str(self.folder)

        def hook(event: str, given: tuple[Any, ...]) -> None:
            if event == "open":
                is_read = not (given[2] or 0) & WRITING
                paths = () if is_read else given[:1]
            else:
                paths = given[: MOVING.get(event, 0)]
            names = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
            # `rmtree` names files relative to an open folder.
            inside = [name for name in names if root in name or not os.path.isabs(name)]
            if not inside:
                return
            self._note(work.phase_of(inside[-1].rpartition(root)[2]) or self.phase, more=1)
            if self.changes == self.kill.change:
                os.kill(os.getpid(), signal.SIGKILL)

        return hook

    def die(self) -> str | None:
        """Waits for its death; returns what it was at, or None where it had ended before."""
        end = None if self.kill.seconds is None else time.monotonic() + self.kill.seconds
        while end is not None and time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return self._checked(status)
            time.sleep(max(0.0, min(0.002, end - time.monotonic())))
        if end is not None:
            os.kill(self.pid, signal.SIGKILL)
        return self._checked(os.waitpid(self.pid, 0)[1])

    def _checked(self, status: int) -> str | None:
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return self.phase
        if status:
            raise SystemExit(f"a run failed by itself (status {status}):\n{self.words()}")
        return None

    def end(self) -> dict[str, Any] | None:
        """Lets it end; returns its result, or None where it failed: then `words` has why."""
        _, status = os.waitpid(self.pid, 0)
        if status or not self.result.exists():
            return None
        found: dict[str, Any] = json.loads(self.result.read_text())
        return found

    def words(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]
