"""Which of several processes this is, as torchrun's environment says, without importing torch."""

from __future__ import annotations

import os


def process_number() -> tuple[int, int]:
    """(rank, size): the number of this process and how many there are; (0, 1) alone."""
    return int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
