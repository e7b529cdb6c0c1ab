"""What can go wrong in the middle of a run, as messages: a stop, a full disk, a full memory."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from quatrain.core.atomic import disk_error
from quatrain.core.errors import InterruptedRun, QuatrainError


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops the work as Ctrl-C does; both end as InterruptedRun."""
    stopped_by_term = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_by_term
        stopped_by_term = True
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt as error:
        how = "stopped by SIGTERM" if stopped_by_term else "stopped"
        raise InterruptedRun(f"{how}; what was made is kept, and the same command goes on from there") from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def failures_explained(name: str, folder: Path) -> Iterator[None]:
    """A full disk and a full memory as messages, wherever a library met them."""
    try:
        yield
    except QuatrainError:
        raise
    except MemoryError as error:
        raise _out_of_memory(name) from error
    except Exception as error:
        text = str(error)
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in text:
            raise disk_error(OSError(errno.ENOSPC, "No space left on device"), folder) from error
        if isinstance(error, RuntimeError) and ("out of memory" in text.lower() or "can't allocate memory" in text):
            raise _out_of_memory(name) from error
        raise


@contextlib.contextmanager
def ended_workers_explained(work: str, kept: str) -> Iterator[None]:
    """A worker process of `work` that something else has ended, as a message; `kept` is what the command continues."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool as error:
        raise QuatrainError(
            f"A process of {work} was ended from outside, perhaps because memory ran out; use fewer --processes. "
            f"The same command continues {kept}."
        ) from error


def _out_of_memory(name: str) -> QuatrainError:
    kind = name.partition("-")[2]
    return QuatrainError(
        f"{name} needs more memory than there is; lower stage.{kind}.train.batch_tokens, raise "
        f"stage.{kind}.train.accumulation, or make the model smaller. What was finished is kept."
    )
