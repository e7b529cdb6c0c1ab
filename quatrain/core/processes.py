"""The rank of this process from torchrun's environment variables, without importing torch."""

from __future__ import annotations

import os

from quatrain.core.errors import InputError

RANGES = {
    "RANK": (0, 2**20),
    "WORLD_SIZE": (1, 2**20),
    "LOCAL_RANK": (0, 2**20),
    "LOCAL_WORLD_SIZE": (1, 2**20),
    "MASTER_PORT": (0, 65535),
}
"""The environment variables of torchrun, with the smallest and largest value of each."""


def environment_number(name: str, default: int = 0) -> int:
    """An environment variable of torchrun as integer; `default` if unset. Raises InputError for an invalid value."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    least, largest = RANGES[name]
    if text.isascii() and text.isdigit() and least <= int(text[:18]) <= largest:
        return int(text)
    raise InputError(
        f"{name}={text[:40]!r}: must be a whole number from {least} to {largest:,}; torchrun sets it, unset it where "
        "one process works alone"
    )


def process_number() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) for a single process."""
    return environment_number("RANK"), environment_number("WORLD_SIZE", 1)
