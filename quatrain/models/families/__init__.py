"""Model families: each module maps the `config.json` and the weights of one Hugging Face architecture to the stack."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.mapping import Family, Head, Key

__all__ = ["Family", "Head", "Key", "families", "family_of", "get_family", "is_family"]


@cache
def families() -> dict[str, Family]:
    """All families by `model_type`, collected from the FAMILIES of each module in this package."""
    result: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        result |= {family.name: family for family in getattr(loaded, "FAMILIES", ())}
    return result


def is_family(name: str) -> bool:
    """Whether a `model_type` is that of a known family, or of a model that contains one."""
    return name in families() or any(name in family.nested_in for family in families().values())


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. For a model that reads images it is that of the text model inside.

    Raises InputError as `get_family`.
    """
    name = config.get("model_type")
    for family in families().values():
        inner = config.get(family.nested_in.get(name, "")) if isinstance(name, str) else None
        if isinstance(inner, Mapping) and inner.get("model_type") == family.name:
            return family
    return get_family(name)


def get_family(name: str | None) -> Family:
    """The family of a `model_type`. Raises InputError, with the known families, the most similar first, if unknown."""
    known = families()
    if not isinstance(name, str):
        value = "missing" if name is None else format_value(name)
        raise InputError(f"model_type: {value}; must be the name of a family: {', '.join(known)}.")
    if name in known:
        return known[name]
    for family in known.values():
        if name in family.nested_in:
            return family
    similar = difflib.get_close_matches(str(name), known, len(known), cutoff=0.4)
    ordered = [*similar, *(other for other in known if other not in similar)]
    raise InputError(
        f"model_type: {format_value(name)} is not a family that Quatrain knows. It knows: {', '.join(ordered)}. "
        "`quatrain inspect MODEL` tells which of them is nearest, and what is new."
    )
