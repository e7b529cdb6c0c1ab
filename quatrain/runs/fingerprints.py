"""Fingerprints: short hashes of everything that the result of a stage depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.runs.settings import UNMARKED_KEYS, RecipeSettings, to_dict
from quatrain.runs.stages import spec_of

DATA_VERSION = 3
"""Raised when generated data, templates or a stage change, so that older results are redone."""


@dataclass(frozen=True)
class Mark:
    """`fingerprint` covers the whole result of a stage; `work` does not cover its evaluation, for its checkpoints."""

    fingerprint: str
    work: str


def stage_marks(recipe: RecipeSettings, inputs: Mapping[str, str]) -> list[Mark]:
    """One mark for each stage, each built on the last one that leaves something; `inputs` mark the user's files."""
    marks: list[Mark] = []
    before = Mark("", "")
    for stage in recipe.stage:
        settings = _without(to_dict(stage), UNMARKED_KEYS)
        measured = bool(settings.pop("evaluate", True))
        spec = spec_of(stage)
        shared: dict[str, Any] = {"version": DATA_VERSION, "seed": recipe.seed, "inputs": dict(inputs)}
        shared |= {table: _table(getattr(recipe, table)) for table in spec.tables}
        work = _hash({"settings": settings, "shared": shared, "before": before.work})
        whole: dict[str, Any] = {"work": work, "before": before.fingerprint}
        if spec.measured:
            whole |= {"measured": measured, "evaluate": to_dict(recipe.evaluate)}
        marks.append(Mark(_hash(whole), work))
        if spec.produces:  # no later stage depends on one that leaves nothing
            before = marks[-1]
    return marks


def _table(value: Any) -> Any:
    """A table of the recipe, or all stages."""
    return [_table(each) for each in value] if isinstance(value, tuple) else _without(to_dict(value), UNMARKED_KEYS)


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
