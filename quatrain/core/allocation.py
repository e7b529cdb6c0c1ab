"""How memory is allocated for tensors on a CPU, on Linux with glibc: kept for the next training step, or apart.

glibc gives every freed tensor above 32 MiB back to the system, which hands it out again page by page, each page filled
with zeros: a third of a step of GPT-2 small on two cores. Kept, the same pages serve step after step. Where the steps
are of many sizes what lies free does not fit what comes next, and would pile up: it is given back when it is much.

A model that is read leaves holes where tensors were that its weights were made of, and weights behind them that stay:
mapped apart, the ones are gone when they are freed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from quatrain.core.process_memory import resident_memory

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""What mallopt(3) calls the settings: how much may lie free, from which size and how often pages are mapped apart."""

_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}
"""Where glibc's own adapting ends up in a process that has freed large tensors."""
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_APART = {_MMAP_THRESHOLD: 1 << 20, _MMAP_MAX: 65536}
_now = dict(_USUAL)

_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")


MORE = 1.5
"""What lies free is given back where a step leaves so many times what steps from a clean heap have left."""


class Kept:
    """What is kept, watched: `after_step` gives it back where it has grown past what the steps need."""

    def __init__(self, glibc: ctypes.CDLL | None):
        self.glibc = glibc
        self.need = 0
        self.clean = True  # the step began with nothing free

    def __bool__(self) -> bool:
        return self.glibc is not None

    def after_step(self) -> None:
        """Looks at the memory of the process, once a step."""
        if self.glibc is None:
            return
        held = resident_memory()
        if self.clean:
            self.need = max(self.need, held)
        self.clean = held > MORE * self.need
        if self.clean:
            self.glibc.malloc_trim(0)


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[Kept]:
    """Within it this process keeps what it frees, at the end it gives it back; what it yields is true where that is so.

    Nothing happens with another allocator, or where the user's environment says how memory is allocated.
    """
    with _set(_KEPT, wanted) as glibc:
        yield Kept(glibc)


@contextmanager
def large_apart() -> Iterator[None]:
    """Within it each tensor of a MiB and more is mapped apart: freed it is gone, and leaves no hole.

    For what is made once, such as a model that is read, also while freed memory is kept; what is allocated again and
    again is slow this way.
    """
    with _set(_APART):
        yield


@contextmanager
def _set(settings: Mapping[int, int], wanted: bool = True) -> Iterator[ctypes.CDLL | None]:
    """The allocator under these settings beside those that are; None where they cannot be."""
    global _now
    glibc, before = _glibc() if wanted and keeps() else None, _now
    done = glibc is not None and all(glibc.mallopt(*setting) for setting in settings.items())
    if glibc is not None:
        _now = before | dict(settings)
        if before == _USUAL:  # what is kept stays
            glibc.malloc_trim(0)
    try:
        yield glibc if done else None
    finally:
        if glibc is not None:
            _now = before
            for setting in before.items():
                glibc.mallopt(*setting)
            if before == _USUAL:
                glibc.malloc_trim(0)


def keeps() -> bool:
    """Whether a training on this machine's CPU will keep what it frees."""
    return not any(os.environ.get(name) for name in _OF_THE_USER) and _glibc() is not None


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if library.gnu_get_libc_version and library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        return None
