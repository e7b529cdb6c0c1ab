"""Freed memory is kept for the next training step, on Linux with glibc.

glibc gives every freed tensor above 32 MiB back to the system, which hands it out again page by page, each page filled
with zeros: a third of a step of GPT-2 small on two cores. Kept, the same pages serve step after step.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""What mallopt(3) calls the settings: how much may lie free, from which size and how often pages are mapped apart."""

_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}
"""Where glibc's own adapting ends up in a process that has freed large tensors."""

_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[bool]:
    """Within it this process keeps what it frees, at the end it gives it back; yields whether that is so.

    Nothing happens with another allocator, or where the user's environment says how memory is allocated.
    """
    glibc = _glibc() if wanted and not any(os.environ.get(name) for name in _OF_THE_USER) else None
    kept = glibc is not None and all(glibc.mallopt(*setting) for setting in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))
    if glibc is not None:
        glibc.malloc_trim(0)
    try:
        yield kept
    finally:
        if glibc is not None:
            for setting in _USUAL.items():
                glibc.mallopt(*setting)
            glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if library.gnu_get_libc_version and library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        return None
