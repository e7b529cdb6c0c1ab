"""The entry points: what strangers can hand to the package, each with the kinds of inputs that go there.

A module of this package adds its own by a table `ENTRIES`: the entry point, and below it every kind with the function
that makes an input and the kind's share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import fuzzing
from fuzzing.case import Bench, Case

Kind = tuple[Callable[[Bench], Case], float]


def _found() -> dict[str, dict[str, Kind]]:
    found: dict[str, dict[str, Kind]] = {}
    for module in pkgutil.iter_modules(fuzzing.__path__, "fuzzing."):
        if module.name != __name__:
            for entry, kinds in getattr(importlib.import_module(module.name), "ENTRIES", {}).items():
                found.setdefault(entry, {}).update(kinds)
    return dict(sorted(found.items()))


ENTRIES = _found()
KINDS: dict[str, Kind] = {name: kind for kinds in ENTRIES.values() for name, kind in kinds.items()}
