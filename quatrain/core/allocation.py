"""Tunes the glibc allocator for CPU tensors: freed memory is kept between training steps, or large tensors are mmapped.

glibc returns every freed tensor above 32 MiB to the system, and the next allocation pays for zeroing its pages again: a
third of a step of GPT-2 small on two cores. Keeping freed memory reuses the same pages in every step. If steps vary in
size, free blocks do not fit the next requests and accumulate, so they are released when they become large.

Loading a model allocates temporary tensors between weights that stay; mmapping large tensors separately avoids holes in
the heap when they are freed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from quatrain.core.process_memory import resident_memory

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3): limit on free memory at the top of the heap, size from which to mmap, number of mmaps."""

_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}
"""The values that glibc adapts to in a process that has freed large tensors."""
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_APART = {_MMAP_THRESHOLD: 1 << 20, _MMAP_MAX: 65536}
_now = dict(_USUAL)

# oneDNN keeps 1,024 compiled operations, each with buffers of its own: hundreds of MB where batches differ in shape,
# between freed tensors, whose pages cannot be returned then. A step needs about 30. oneDNN reads the variable once.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")


MORE = 1.5
"""Free memory is released when steps hold this multiple of what those from a trimmed heap hold, beside what the process
held before the first one: its code and data do not grow, and are no measure of a step."""


class Kept:
    """Watches the kept memory: `after_step` releases it if it has grown beyond what the steps need."""

    def __init__(self, glibc: ctypes.CDLL | None):
        self.glibc = glibc
        self.before = resident_memory() if glibc is not None else 0
        self.need = 0
        self.clean = True  # the step started from a trimmed heap

    def __bool__(self) -> bool:
        return self.glibc is not None

    def after_step(self) -> None:
        """Check the memory of the process; call once per step."""
        if self.glibc is None:
            return
        held = resident_memory() - self.before
        if self.clean:
            self.need = max(self.need, held)
        self.clean = held > MORE * self.need
        if self.clean:
            self.glibc.malloc_trim(0)


@contextmanager
def freed_memory_kept(enabled: bool = True) -> Iterator[Kept]:
    """Keep freed memory within the block and release it at the end; the yielded object is true if that is active.

    Does nothing with another allocator, or if the user's environment configures the allocator.
    """
    with _set(_KEPT, enabled) as glibc:
        yield Kept(glibc)


@contextmanager
def large_apart() -> Iterator[None]:
    """Mmap each tensor of at least 1 MiB within the block, so that it leaves no hole in the heap when freed.

    For tensors allocated once, such as those of a loaded model, also inside `freed_memory_kept`; repeated allocations
    are slow this way.
    """
    with _set(_APART):
        yield


@contextmanager
def _set(settings: Mapping[int, int], enabled: bool = True) -> Iterator[ctypes.CDLL | None]:
    """Apply these settings in addition to the current ones; yields None if they cannot be applied."""
    global _now
    glibc, before = _glibc() if enabled and keeps() else None, _now
    done = glibc is not None and all(glibc.mallopt(*setting) for setting in settings.items())
    if glibc is not None:
        _now = before | dict(settings)
        if before == _USUAL:  # otherwise kept memory would be released
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
    """Whether training on this CPU can keep freed memory."""
    return not any(os.environ.get(name) for name in _OF_THE_USER) and _glibc() is not None


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if library.gnu_get_libc_version and library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        return None
