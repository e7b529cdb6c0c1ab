"""What the result of a stage follows from, as short hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.runs.recipe import UNMARKED_KEYS, Recipe, to_dict

DATA_VERSION = 2
"""Counted up when what the package generates, its templates or a stage change, so that older results are redone."""


@dataclass(frozen=True)
class Mark:
    """`fingerprint` covers all of a stage's result, `work` leaves out how it is measured: checkpoints stay valid."""

    fingerprint: str
    work: str


def stage_marks(recipe: Recipe, inputs: Mapping[str, str]) -> list[Mark]:
    """One mark a stage, each built on the one before; `inputs` marks the content of the user's files."""
    marks: list[Mark] = []
    before = Mark("", "")
    for stage in recipe.stage:
        settings = _without(to_dict(stage), UNMARKED_KEYS)
        measured = bool(settings.pop("evaluate", True))
        shared: dict[str, Any] = {
            "version": DATA_VERSION,
            "seed": recipe.seed,
            "data": to_dict(recipe.data),
            "tokenizer": to_dict(recipe.tokenizer),
            "inputs": dict(inputs),
        }
        if stage.kind != "tokenizer":
            shared["model"] = to_dict(recipe.model)
        work = _hash({"settings": settings, "shared": shared, "before": before.work})
        whole = {"work": work, "before": before.fingerprint}
        if stage.kind != "tokenizer":
            whole |= {"measured": measured, "evaluate": to_dict(recipe.evaluate)}  # type: ignore[dict-item]
        before = Mark(_hash(whole), work)
        marks.append(before)
    return marks


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
