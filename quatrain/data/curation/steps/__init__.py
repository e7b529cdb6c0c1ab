"""The steps of curation: one module each, found by its place in this package, with a class `STEP`."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from quatrain.data.curation.step import AnyStep


@cache
def steps() -> dict[str, type[AnyStep]]:
    """The class of every step by its name, which is that of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: import_module(f"{__name__}.{name}").STEP for name in names}
