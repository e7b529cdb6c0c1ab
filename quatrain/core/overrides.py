"""`a.b=c` overrides of a recipe, as given on the command line.

A key is a path: `data.source`, `stage.1.train.steps`, `stage[1].train.steps` (counted from zero) or
`stage.pretrain.train.steps` (by kind). A value is parsed as TOML (`3`, `1e-3`, `true`, `["a", "b"]`), otherwise
it is text; `none` removes a key, or a whole stage. The later check of the whole recipe reports unknown keys
and invalid values, so that all problems are reported together.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import parse_toml
from quatrain.core.settings import Place, Settings, annotation_at, did_you_mean, format_place
from quatrain.core.wording import format_value

_PART = re.compile(r"([^.\[\]]+)|\[(-?[0-9]{1,9})\]")
_NUMBER = re.compile(r"[0-9]{1,9}")
MOST_PARTS = 16
"""Limit on the parts of a key; keys of recipes have at most five."""


def apply_overrides(
    cls: type[Settings], raw: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str], list[Place]]:
    """A copy of a raw recipe with the valid overrides applied, the problems of the invalid ones, and the places of
    the valid ones.
    """
    changed = copy.deepcopy(dict(raw))
    problems, places = [], []
    for override in overrides:
        try:
            places.append(_apply(cls, changed, override))
        except InputError as error:
            problems.append(str(error))
    return changed, problems, places


def read_value(text: str, annotation: Any) -> Any:
    """The value parsed as TOML; the text itself if that fails, or if the key only holds text."""
    try:
        value = parse_toml(f"value = {text}\n", "the value")
    except InputError:
        return text
    if set(value) != {"value"}:
        return text
    parsed = value["value"]
    return text if annotation is str and not isinstance(parsed, str) else parsed


def _apply(cls: type[Settings], raw: dict[str, Any], override: str) -> Place:
    """Apply an override to a raw recipe; returns its place."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"{format_value(override)}: must have the form key=value, such as stage.1.train.steps=100")
    place = _resolve(raw, _split(key, override), override)
    annotation = annotation_at(cls, place, raw)
    value = None if text.strip() == "none" else read_value(text.strip(), annotation)
    target: Any = raw
    for depth, part in enumerate(place[:-1]):
        if isinstance(target, list):
            target = target[int(part)]
            continue
        following = target.get(part)
        if following is None and part not in target and isinstance(place[depth + 1], str):
            following = target[part] = {}
        if not isinstance(following, dict | list):
            raise InputError(f"{format_value(override)}: {format_place(place[: depth + 1])} has no keys below it")
        target = following
    if isinstance(target, list):
        if value is not None:
            raise InputError(
                f"{format_value(override)}: a whole stage cannot be replaced; name a key of it, or remove it with none"
            )
        del target[int(place[-1])]
        return place
    if value is None:
        target.pop(place[-1], None)
    else:
        target[str(place[-1])] = value
    return place


def _split(key: str, override: str) -> list[str | int]:
    parts: list[str | int] = []
    position = 0
    while position < len(key):
        match = _PART.match(key, position)
        if match is None:
            raise InputError(
                f"{format_value(override)}: {format_value(key)} is not a key; must look like stage[1].train.steps"
            )
        parts.append(match[1] if match[1] is not None else int(match[2]))
        position = match.end()
        if position < len(key) and key[position] == ".":
            position += 1
            if position == len(key):
                raise InputError(f"{format_value(override)}: {format_value(key)} ends with a dot")
    if len(parts) > MOST_PARTS:
        raise InputError(f"{format_value(override)}: a key of {len(parts):,} parts; none has more than {MOST_PARTS}")
    return parts


def _resolve(raw: Mapping[str, Any], parts: Sequence[str | int], override: str) -> Place:
    """The path with stages by index: `stage.pretrain.train` -> `("stage", 1, "train")`."""
    place: list[str | int] = []
    target: Any = raw
    for part in parts:
        if isinstance(target, list):
            part = _item(target, part, format_place(place), override)
            target = target[part]
        else:
            target = target.get(part) if isinstance(target, Mapping) else None
        place.append(part)
    return tuple(place)


def _item(items: Sequence[Any], part: str | int, name: str, override: str) -> int:
    kinds = [str(item.get("kind")) if isinstance(item, Mapping) else "" for item in items]
    numbered = ", ".join(f"{index} ({kind})" for index, kind in enumerate(kinds))
    if isinstance(part, str) and not _NUMBER.fullmatch(part):
        indices = [index for index, kind in enumerate(kinds) if kind == part]
        if len(indices) == 1:
            return indices[0]
        if indices:
            raise InputError(
                f"{format_value(override)}: there are {len(indices)} {part} stages; must be one of {numbered}"
            )
        near = did_you_mean(part, kinds)
        raise InputError(f"{format_value(override)}: no {name} of kind {part}; must be one of {numbered}{near}")
    if not 0 <= int(part) < len(items):
        raise InputError(f"{format_value(override)}: no {name}[{part}]; must be one of {numbered}")
    return int(part)
