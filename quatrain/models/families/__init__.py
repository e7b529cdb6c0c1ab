"""The families that the stack can be: each a config mapping and a list of weight operations, nothing else."""

from __future__ import annotations

import difflib

from quatrain.errors import InputError
from quatrain.models.families.mapping import Family, Head, Key

__all__ = ["Family", "Head", "Key", "families", "family"]


def families() -> dict[str, Family]:
    """Every known family by its `model_type`."""
    from quatrain.models.families import bert, gpt2, llama, t5

    modules = (llama, gpt2, bert, t5)
    return {family.name: family for module in modules for family in module.FAMILIES}


def family(name: str | None) -> Family:
    """The family of a `model_type`. Raises InputError with the known ones, nearest first."""
    known = families()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, len(known), cutoff=0.4)
    ordered = [*near, *(other for other in known if other not in near)]
    raise InputError(
        f"model_type: {name!r} is a family that Quatrain does not know. Known families: {', '.join(ordered)}."
    )
