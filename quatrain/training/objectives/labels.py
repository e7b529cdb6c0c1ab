"""Labels of data beside those of a model: a label is a name, and a number stands for a place only where that is plain.

Numbers that were written as text (in CSV) are names like others. Whole numbers (in JSON, Parquet or Python) are names
where the model has such names, and places where none of its names is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.records import Row

Prepared = tuple[list[Any], list[str]]
"""Examples, and notes for the reader."""

MAX_SHOWN = 12
"""Labels that a message shows."""

_DEFAULT = re.compile(r"LABEL_\d+")


def label_index(value: Any, labels: Sequence[str], *, numbered: bool = False) -> int | str:
    """The place of a label among a model's; a text that says what is wrong where it has none.

    `numbered`: numbers written as text are places too, as a recipe says that names the labels 0, 1, … in their order.
    transformers' own names LABEL_0, LABEL_1, … say so as well.
    """
    if isinstance(value, str) and value in labels:
        return list(labels).index(value)
    places = not any(label.isdecimal() for label in labels)
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        if str(value) in labels:
            return list(labels).index(str(value))
        number = value
    elif (
        isinstance(value, str) and value.strip().isdecimal() and len(value) < 10 and (numbered or _are_default(labels))
    ):
        number = int(value)
    if number is not None and places and 0 <= number < len(labels):
        return number
    as_text = isinstance(value, str) and value.strip().isdecimal()
    rest = f", or a number from 0 to {len(labels) - 1}" if places and not as_text else ""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '…'}; must be one of {listed(labels)}{rest}"


def _are_default(labels: Sequence[str]) -> bool:
    return all(_DEFAULT.fullmatch(label) for label in labels)


def listed(labels: Iterable[str]) -> str:
    """The first labels of some, and how many there are where they are more."""
    found = list(labels)
    return ", ".join(found[:MAX_SHOWN]) + (f", … ({len(found)})" if len(found) > MAX_SHOWN else "")


@dataclass(frozen=True)
class LabelsFound:
    """How the labels of a whole data set name a model's: notes for the reader, and the fault where they do not."""

    notes: tuple[str, ...] = ()
    fault: str | None = None
    mixed: bool = False


def values_of(record: Any, name: str) -> Sequence[Any]:
    """The labels of a record in the field `name`: one, or those of a list; none where it has no such field."""
    record = record.value if isinstance(record, Row) else record
    record = record.fields() if callable(getattr(record, "fields", None)) else record
    value = record.get(name) if isinstance(record, Mapping) else None
    return value if isinstance(value, list | tuple) else [value]


def check_set(values: Iterable[Sequence[Any]], labels: Sequence[str], numbered: bool) -> LabelsFound:
    """How the labels of all records, a list of each one's, name a model's labels."""
    known: dict[tuple[type, Any], int | str] = {}
    for value in (each for some in values for each in some):
        if isinstance(value, str | int) and (type(value), value) not in known:
            known[type(value), value] = label_index(value, labels, numbered=numbered)
    names = sorted(dict.fromkeys(str(value) for _, value in known))
    both = f"the labels of the data are {listed(names)}; the model's are {listed(labels)}"
    unknown = [str(value) for (_, value), place in known.items() if isinstance(place, str)]
    if unknown:
        hint = "; write the names in place of the numbers" if all(map(str.isdecimal, unknown)) else ""
        return LabelsFound(fault=f"{both}{hint}")
    by_place = {value: place for (_, value), place in known.items() if str(value) not in labels}
    if by_place and len(by_place) < len(known):
        return LabelsFound(fault=f"some labels are names and some are numbers; {both}; write names", mixed=True)
    if not by_place or numbered or _are_default(labels):
        return LabelsFound()
    places = sorted(by_place.items(), key=lambda each: each[1])
    said = listed(f"{value} is {labels[int(place)]}" for value, place in places)
    return LabelsFound((f"the labels of the data are numbers, taken as places among the model's: {said}",))


def with_labels(prepare: Callable[[], Prepared], found: LabelsFound) -> Prepared:
    """What `prepare` gives, with the notes on labels. Raises InputError with the labels of both where they differ."""
    if found.mixed:
        raise InputError(f"These examples cannot be used: {found.fault}.")
    try:
        examples, notes = prepare()
    except InputError as error:
        if found.fault is None:
            raise
        raise InputError(f"{error.message}; {found.fault}", error.problems) from error
    return examples, [*notes, *found.notes]
