"""The offline switch: `QUATRAIN_OFFLINE=1` forbids network access."""

from __future__ import annotations

import os


def offline() -> bool:
    """Whether QUATRAIN_OFFLINE forbids the network."""
    return os.environ.get("QUATRAIN_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")
