"""Dependent keys of a recipe: an override of one key adapts the recipe's own values of the keys that depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quatrain.core.settings import Place, format_place

USUAL_WARMUP = 20
"""The default of `warmup_steps`."""

FALLING = ("linear", "cosine", "wsd")
"""Schedules that end at `min_learning_rate_ratio`."""


def adapt(raw: dict[str, Any], places: Sequence[Place]) -> Iterator[str]:
    """Change keys of a raw recipe that contradict the overrides at `places`. Yields a line for each change.

    An override itself is never changed. If two of them contradict each other, the check refuses the recipe.
    """
    stages = raw.get("stage")
    asked = {place for place in places if not (len(place) == 2 and place[0] == "stage")}
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        train = stage.get("train") if isinstance(stage, dict) else None
        if not isinstance(train, dict):
            continue
        place: Place = ("stage", index, "train")
        given = {str(key[-1]) for key in asked if key[:-1] == place}
        if place in asked:
            continue  # the whole table was given
        yield from _length(train, given, place)
        yield from _validation(train, given, place, raw, stage, asked)


def _length(train: dict[str, Any], given: set[str], place: Place) -> Iterator[str]:
    """Adapts `steps` and `epochs`, and the keys that must fit within the steps."""
    for asked, other in (("steps", "epochs"), ("epochs", "steps")):
        if asked in given and asked in train and other in train and other not in given:
            yield _changed(place, other, train.pop(other), None, f"{asked} = {train[asked]} was asked for")
    steps: Any = train.get("steps")
    if not _is_count(steps):
        return
    warmup_steps = train.get("warmup_steps", USUAL_WARMUP)
    follows = "steps" in given or "warmup_steps" not in train
    if follows and "warmup_steps" not in given and _is_count(warmup_steps) and warmup_steps > steps:
        train["warmup_steps"] = steps // 10
        yield _changed(place, "warmup_steps", warmup_steps, train["warmup_steps"], f"steps = {steps}")
    if "steps" in given and steps == 1 and not given & {"schedule", "warmup_steps", "min_learning_rate_ratio"}:
        falls = train.get("schedule", "cosine") in FALLING and not train.get("min_learning_rate_ratio")
        if falls and train.get("warmup_steps", USUAL_WARMUP) == 0:
            old, train["schedule"] = train.get("schedule", "cosine"), "constant"
            yield _changed(place, "schedule", old, "constant", "a single step would have the rate 0")


def _validation(
    train: dict[str, Any],
    given: set[str],
    place: Place,
    raw: Mapping[str, Any],
    stage: Mapping[str, Any],
    asked: set[Place],
) -> Iterator[str]:
    """Adapts keys that depend on validations when an override has removed these."""
    every = "evaluate_every" in given and not train.get("evaluate_every")
    none = every or _without_validation(raw, stage, place, asked)
    why = "evaluate_every = 0" if every else "data.validation = 0"
    for key, without in (("keep", "last"), ("patience", 0)):
        if none and key in train and key not in given and train[key] != without:
            yield _changed(place, key, train.pop(key), None, f"{why}: there are no validations to go by")


def _without_validation(raw: Mapping[str, Any], stage: Mapping[str, Any], place: Place, asked: set[Place]) -> bool:
    """Whether an override leaves no data for validations."""
    own = (*place[:-1], "data", "validation")
    data = stage.get("data") if own in asked else raw.get("data")
    if not {own, ("data", "validation")} & asked or not isinstance(data, Mapping):
        return False
    if own not in asked and isinstance(stage.get("data"), Mapping):
        return False
    return data.get("validation") == 0 and not any(data.get(key) for key in ("dev", "dev_split", "database"))


def _changed(place: Place, key: str, old: Any, new: Any, why: str) -> str:
    given = "left out" if new is None else f"is {new}"
    return f"{format_place((*place, key))} {given} (the recipe says {old}): {why}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
