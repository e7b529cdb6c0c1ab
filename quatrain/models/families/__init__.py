"""The families that the stack can be: each a config mapping and a list of weight operations, nothing else."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.mapping import Family, Head, Key

__all__ = ["Family", "Head", "Key", "families", "get_family"]


@cache
def families() -> dict[str, Family]:
    """Every known family by its `model_type`: the FAMILIES of each module here."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        page = importlib.import_module(f"{__name__}.{module.name}")
        found |= {family.name: family for family in getattr(page, "FAMILIES", ())}
    return found


def get_family(name: str | None) -> Family:
    """The family of a `model_type`. Raises InputError with the known ones, nearest first."""
    known = families()
    if not isinstance(name, str):
        said = "missing" if name is None else format_value(name)
        raise InputError(f"model_type: {said}; must be the name of a family: {', '.join(known)}.")
    if name in known:
        return known[name]
    for kind in known.values():
        if name in kind.nested_in:
            return kind
    near = difflib.get_close_matches(str(name), known, len(known), cutoff=0.4)
    ordered = [*near, *(other for other in known if other not in near)]
    raise InputError(
        f"model_type: {format_value(name)} is not a family that Quatrain knows. It knows: {', '.join(ordered)}."
    )
