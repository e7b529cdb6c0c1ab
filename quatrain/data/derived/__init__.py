"""Data sets that are made from other catalog sources by rule, one module each, found by their place.

A catalog entry with `derived = "MODULE:PART"` and `origins = [names]` has no address. `catalog.fetch` fetches its
origins, calls `rows(paths, part)` of the module, which yields JSON objects, and keeps them as JSON Lines in the cache.
The path in the entry ends with a version: raise it when the rule changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def derived_rows(rule: str, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows of "MODULE:PART" from the files of its origins, in order."""
    module, _, part = rule.partition(":")
    rows: Iterator[dict[str, Any]] = import_module(f"quatrain.data.derived.{module}").rows(paths, part)
    return rows
