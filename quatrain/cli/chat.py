"""`quatrain chat`."""

from __future__ import annotations

from pathlib import Path


def chat(model: Path, *, db: Path | None = None) -> int:
    """Talk to a model."""
    return 0
