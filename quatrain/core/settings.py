"""The strict base class of all typed settings, with error messages that the user can act on.

Settings are frozen pydantic models, defined next to the code that uses them. `parse` checks a tree of settings and
reports all problems at once, each with its place, its value, what is allowed and a suggestion:

    stage[1].train.lerning_rate: unknown; did you mean learning_rate?
    seed: "x" is text; must be a whole number
    model.family: "lama"; must be one of llama, gpt2, mistral, …; did you mean llama?

A class with constraints between keys overrides `Settings.conflicts`. A class that renamed a key lists the old name in
`Settings.renamed_keys`.
"""

from __future__ import annotations

import copy
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Strict, ValidationError

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value, printable, shorten, type_name

Place = tuple[str | int, ...]

Item = TypeVar("Item")

Listing = Annotated[tuple[Item, ...], Strict(False)]
"""A TOML list, stored as a tuple so that settings are immutable."""


MOST_SHOWN = 1_000
"""Limit on the characters of a problem."""

LARGEST_WHOLE = 2**63 - 1
"""The largest integer that our files and all libraries can represent."""


@dataclass(frozen=True)
class Problem:
    """A problem at `place`; `also` lists the other places that it depends on."""

    place: Place
    text: str
    also: tuple[Place, ...] = ()

    def under(self, prefix: Place) -> Problem:
        """The same problem with its places relative to the root of a tree that has this object at `prefix`."""
        return Problem(prefix + self.place, self.text, tuple(prefix + place for place in self.also))

    def __str__(self) -> str:
        text = f"{format_place(self.place)}: {self.text}" if self.place else self.text
        return shorten(printable(text), MOST_SHOWN)


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, types are strict (an integer is accepted as float), frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old key -> new key. An old key is an error like any unknown key, with the new one as suggestion."""

    def conflicts(self) -> Iterator[Problem]:
        """Violated constraints between keys of this object, with places relative to it."""
        yield from ()

    def all_conflicts(self) -> Iterator[Problem]:
        """`conflicts` of this object and of every settings object in it."""
        yield from self.conflicts()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Settings):
                yield from (problem.under((name,)) for problem in value.all_conflicts())
            elif isinstance(value, tuple | dict):
                for index, item in value.items() if isinstance(value, dict) else enumerate(value):
                    if isinstance(item, Settings):
                        yield from (problem.under((name, index)) for problem in item.all_conflicts())


S = TypeVar("S", bound=Settings)


def parse(cls: type[S], data: Mapping[str, Any], *, what: str = "the settings", more: Iterable[str] = ()) -> S:
    """Check `data` against a settings class; raise InputError with every problem at once, `more` among them."""
    if large := list(_too_large(data)):
        places = {problem.place for problem in large}
        try:
            cls.model_validate(data)
        except ValidationError as error:
            large += [problem for problem in _translate(cls, error, data)[0] if problem.place not in places]
        raise InputError(f"{what} has numbers that are too large:", problems=[*more, *map(str, large)])
    problems: list[Problem] = []
    value: S | None = None
    try:
        value = cls.model_validate(data)
    except ValidationError as error:
        problems, dropped = _translate(cls, error, data)
        value = _validate_rest(cls, data, dropped)
        if value is not None:
            problems += [problem for problem in value.all_conflicts() if not _touches(problem, dropped)]
    else:
        problems = list(value.all_conflicts())
    lines = list(dict.fromkeys([*more, *map(str, problems)]))
    if lines or value is None:
        count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise InputError(f"{what} has {count}:", problems=lines)
    return value


def _too_large(data: Any, place: Place = ()) -> Iterator[Problem]:
    """Problems for integers beyond LARGEST_WHOLE."""
    if isinstance(data, int) and abs(data) > LARGEST_WHOLE:
        yield Problem(place, f"{format_value(data)}; must be at most {LARGEST_WHOLE:,}")
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _too_large(value, (*place, key))


def format_place(place: Iterable[str | int]) -> str:
    """`("stage", 1, "train")` -> `stage[1].train`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def suggest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words` other than `word` itself; None if none is similar."""
    choices = [choice for choice in words if choice != word]
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.55)
    return lowered[near[0]] if near else None


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """`; did you mean llama?`, or an empty string."""
    near = suggest(word, words)
    return f"; did you mean {near}?" if near else ""


def annotation_at(cls: type[Settings], place: Place, data: Any) -> Any:
    """The type annotation at a place of a tree of settings, or None if there is none.

    `data` is the raw tree; its `kind` keys select the members of unions.
    """
    annotation: Any = cls
    for part in place:
        annotation = _choose(annotation, data)
        if isinstance(part, int):
            arguments = typing.get_args(annotation)
            annotation = arguments[0] if typing.get_origin(annotation) is tuple and arguments else None
            data = data[part] if isinstance(data, list) and -len(data) <= part < len(data) else None
        elif typing.get_origin(annotation) is dict:
            annotation = typing.get_args(annotation)[1]
            data = data.get(part) if isinstance(data, Mapping) else None
        else:
            fields = annotation.model_fields if _is_settings(annotation) else {}
            annotation = _annotation(fields[part]) if part in fields else None
            data = data.get(part) if isinstance(data, Mapping) else None
        if annotation is None:
            return None
    return _choose(annotation, data)


def _annotation(field: Any) -> Any:
    """A field's annotation including its discriminator and constraints."""
    marks = ([field.discriminator] if field.discriminator else []) + list(field.metadata)
    return Annotated[(field.annotation, *marks)] if marks else field.annotation


def members(annotation: Any) -> dict[str, type[Settings]]:
    """The settings classes of a union by their `kind`."""
    classes: dict[str, type[Settings]] = {}
    for option in _options(annotation):
        if _is_settings(option) and "kind" in option.model_fields:
            for kind in typing.get_args(option.model_fields["kind"].annotation):
                classes[kind] = option
    return classes


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _plain(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _options(annotation: Any) -> list[Any]:
    """The members of a union without None; the type itself if it is not a union."""
    annotation = _plain(annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [option for item in typing.get_args(annotation) for option in _options(item) if option is not type(None)]
    return [annotation]


def _choose(annotation: Any, data: Any) -> Any:
    """The member of a union that the `kind` of `data` selects; for other types, the type without annotations."""
    options = _options(annotation)
    if len(options) == 1:
        return options[0]
    kinds = members(annotation)
    if kinds:
        return kinds.get(str(data.get("kind"))) if isinstance(data, Mapping) else None
    return Union[tuple(options)]  # noqa: UP007 (built from a list)


def _translate(
    cls: type[Settings], error: ValidationError, data: Mapping[str, Any]
) -> tuple[list[Problem], list[Place]]:
    """Pydantic's errors as problems, and the places to drop so that the rest can be checked."""
    errors: dict[Place, list[Any]] = {}
    for item in error.errors(include_url=False):
        errors.setdefault(_real_place(cls, item["loc"], data), []).append(item)
    problems, dropped = [], []
    for place, items in errors.items():
        kind = items[0]["type"]
        is_kind = kind.startswith("union_tag") and isinstance(_value_or_none(data, place), Mapping)
        problem_place = (*place, "kind") if is_kind else place
        problems.append(Problem(problem_place, _message(cls, place, items, data)))
        dropped.append(place[:-1] if kind == "missing" else place)
    return problems, dropped


def _real_place(cls: type[Settings], location: tuple[str | int, ...], data: Any) -> Place:
    """A pydantic location without the names of union members, which are not the user's keys."""
    place: list[str | int] = []
    annotation: Any = cls
    for part in location:
        kinds = members(annotation)
        if len(kinds) > 1 and part in kinds and not (isinstance(data, Mapping) and part in data):
            annotation = kinds[str(part)]
            continue
        chosen = _choose(annotation, data)
        if isinstance(part, int):
            arguments = typing.get_args(chosen)
            annotation = arguments[0] if arguments else None
            data = data[part] if isinstance(data, list | tuple) and part < len(data) else None
        elif typing.get_origin(chosen) is dict:
            annotation = typing.get_args(chosen)[1]
            data = data.get(part) if isinstance(data, Mapping) else None
        elif _is_settings(chosen):
            annotation = _annotation(chosen.model_fields[part]) if part in chosen.model_fields else None
            data = data.get(part) if isinstance(data, Mapping) else None
        else:
            continue  # the name of a union member of a plain type
        place.append(part)
    return tuple(place)


def _value_at(data: Any, place: Place) -> Any:
    for part in place:
        data = data[part]
    return data


def _message(cls: type[Settings], place: Place, items: list[Any], data: Any) -> str:
    """The message for one place; several errors at one place come from a union of plain types."""
    item = items[0]
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        owner = annotation_at(cls, place[:-1], _value_or_none(data, ()))
        keys = list(owner.model_fields) if _is_settings(owner) else []
        renamed = owner.renamed_keys if _is_settings(owner) else {}
        near = renamed.get(str(place[-1])) or suggest(str(place[-1]), keys)
        return f"unknown; did you mean {near}?" if near else f"unknown; must be one of {', '.join(keys)}"
    if kind == "missing":
        owner = annotation_at(cls, place[:-1], data)
        field = owner.model_fields.get(place[-1]) if _is_settings(owner) else None
        hint = f"; {field.description}" if field is not None and field.description else ""
        return f"missing{hint}"
    value = _value_or_none(data, place)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_message(cls, place, value, data)
    if kind == "literal_error":
        choices = [str(choice) for choice in typing.get_args(annotation_at(cls, place, data))]
        near_word = did_you_mean(value, choices) if isinstance(value, str) else ""
        return f"{format_value(value)}; must be one of {', '.join(choices)}{near_word}"
    if kind == "value_error":
        return f"{format_value(value)}; {context.get('error', item['msg'])}"
    if kind in _LIMITS:
        return f"{format_value(value)}; must be {_LIMITS[kind].format(**context)}"
    if kind == "string_pattern_mismatch":
        owner = annotation_at(cls, place[:-1], data)
        field = owner.model_fields.get(place[-1]) if _is_settings(owner) else None
        wanted_text = field.description if field is not None and field.description else f"like {context['pattern']}"
        return f"{format_value(value)}; must be {wanted_text}"
    expected = [_TYPES[error["type"]] for error in items if error["type"] in _TYPES]
    if expected:
        return f"{_with_type(value)}; must be {' or '.join(dict.fromkeys(expected))}"
    return f"{format_value(value)}; {item['msg'][:1].lower()}{item['msg'][1:]}"


def _with_type(value: object) -> str:
    """`"x" is text`. A mapping of a recipe is "a table", as TOML calls it."""
    return f"{format_value(value)} is {'a table' if isinstance(value, Mapping) else type_name(value)}"


def _tag_message(cls: type[Settings], place: Place, value: Any, data: Any) -> str:
    """The message for a missing or wrong `kind` of a union."""
    parent = annotation_at(cls, place[:-1], data)
    if _is_settings(parent):
        kinds = list(members(_annotation(parent.model_fields[str(place[-1])])))
    else:
        kinds = list(members(typing.get_args(parent)[0]))
    choices = ", ".join(kinds)
    if not isinstance(value, Mapping):
        return f"{_with_type(value)}; must be a table with a kind, one of {choices}"
    if "kind" not in value:
        return f"missing; must be one of {choices}"
    near = did_you_mean(value["kind"], kinds) if isinstance(value["kind"], str) else ""
    return f"{format_value(value['kind'])}; must be one of {choices}{near}"


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "string_unicode": "valid Unicode text",
    "bool_type": "true or false",
    "tuple_type": 'a list, such as ["…", "…"]',
    "list_type": 'a list, such as ["…", "…"]',
    "model_type": "a table of keys",
    "model_attributes_type": "a table of keys",
    "dict_type": "a table of keys",
    "finite_number": "a finite number",
}

_LIMITS = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
}


def _value_or_none(data: Any, place: Place) -> Any:
    try:
        return _value_at(data, place)
    except (KeyError, IndexError, TypeError):
        return None


def _validate_rest(cls: type[S], data: Mapping[str, Any], dropped: list[Place]) -> S | None:
    """The settings without the invalid places, to check the constraints of the rest; None if that is impossible."""
    rest = copy.deepcopy(dict(data))
    for place in sorted(dropped, key=lambda item: tuple(map(_order, item)), reverse=True):
        if not place:
            return None
        parent = _value_or_none(rest, place[:-1])
        if isinstance(parent, dict):
            parent.pop(place[-1], None)
        elif isinstance(parent, list) and isinstance(place[-1], int) and place[-1] < len(parent):
            return None  # removing it would change the indices of the other items
    try:
        return cls.model_validate(rest)
    except ValidationError:
        return None


def _order(part: str | int) -> tuple[int, str]:
    return (part, "") if isinstance(part, int) else (-1, part)


def _touches(problem: Problem, dropped: list[Place]) -> bool:
    """Whether a problem depends on a dropped place."""
    for missing in dropped:
        if any(place[: len(missing)] == missing for place in (problem.place, *problem.also)):
            return True
        if not problem.also and missing[: len(problem.place)] == problem.place:
            return True
    return False


__all__ = ["Listing", "Literal", "Problem", "Settings", "did_you_mean", "format_place", "parse", "suggest"]
