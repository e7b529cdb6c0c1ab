"""Labels: matching the labels of a data set to a model's label names, and the base of objectives with label names.

A label is a name. Numbers written as text (in CSV) are names too. Whole numbers (in JSON, Parquet or Python) are names
if the model has such names, and indices if none of its names is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quatrain.core.errors import InputError
from quatrain.core.wording import format_names, format_value
from quatrain.data.batches import TokenBatch
from quatrain.data.records import Row
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import check_head, forward
from quatrain.training.objectives.texts import FieldReader, TextObjective, label_names, plain

_DEFAULT = re.compile(r"LABEL_\d+")


def label_index(value: Any, labels: Sequence[str], *, numbered: bool = False) -> int | str:
    """The index of a label among a model's labels, or an error message if the model does not have it.

    `numbered`: numbers written as text are indices too. transformers' default names LABEL_0, LABEL_1, … imply this.
    """
    if isinstance(value, str) and value in labels:
        return list(labels).index(value)
    indices = not any(label.isdecimal() for label in labels)
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        if str(value) in labels:
            return list(labels).index(str(value))
        number = value
    elif (
        isinstance(value, str) and value.strip().isdecimal() and len(value) < 10 and (numbered or _are_default(labels))
    ):
        number = int(value)
    if number is not None and indices and 0 <= number < len(labels):
        return number
    as_text = isinstance(value, str) and value.strip().isdecimal()
    rest = f", or a number from 0 to {len(labels) - 1}" if indices and not as_text else ""
    return f"{format_value(value)}; must be one of {format_names(labels)}{rest}"


def _are_default(labels: Sequence[str]) -> bool:
    return all(_DEFAULT.fullmatch(label) for label in labels)


@dataclass(frozen=True)
class LabelMatch:
    """How the labels of a data set match a model's labels: notes for the user, and the fault if they do not match."""

    notes: tuple[str, ...] = ()
    fault: str | None = None
    mixed: bool = False


def values_of(record: Any, name: str) -> Sequence[Any]:
    """The labels in a record's field `name`, as a list; [None] if the record has no such field."""
    record = plain(record.value if isinstance(record, Row) else record)
    value = record.get(name) if isinstance(record, Mapping) else None
    return value if isinstance(value, list | tuple) else [value]


def match_labels(values: Iterable[Sequence[Any]], labels: Sequence[str], numbered: bool) -> LabelMatch:
    """Match the labels of all records (a list for each record) to a model's labels."""
    known: dict[tuple[type, Any], int | str] = {}
    for value in (label for record in values for label in record):
        if isinstance(value, str | int) and (type(value), value) not in known:
            known[type(value), value] = label_index(value, labels, numbered=numbered)
    names = sorted(dict.fromkeys(str(value) for _, value in known))
    both = f"the data has the labels {format_names(names)}; the model has {format_names(labels)}"
    unknown = [str(value) for (_, value), place in known.items() if isinstance(place, str)]
    if unknown:
        hint = "; write names instead of numbers" if all(map(str.isdecimal, unknown)) else ""
        return LabelMatch(fault=f"{both}{hint}")
    by_place = {value: place for (_, value), place in known.items() if str(value) not in labels}
    if by_place and len(by_place) < len(known):
        return LabelMatch(fault=f"some labels are names and some are numbers; {both}; write names", mixed=True)
    if not by_place or numbered or _are_default(labels):
        return LabelMatch()
    places = sorted(by_place.items(), key=lambda each: each[1])
    mapping = format_names(f"{value} is {labels[int(place)]}" for value, place in places)
    return LabelMatch((f"the labels of the data are numbers, used as indices of the model's labels: {mapping}",))


class LabelledObjective(TextObjective):
    """Base of objectives whose records hold names of the model's labels.

    `labels` are the model's label names, in its order. With `numbered`, numbers written as text are label indices.
    """

    head: ClassVar[str]

    def __init__(
        self, tokenizer: Tokenizer, labels: Sequence[str], *, max_length: int | None = None, numbered: bool = False
    ):
        super().__init__(tokenizer, max_length=max_length)
        self.labels, self.numbered = label_names(labels, type(self).__name__), numbered

    @property
    def label_field(self) -> str | None:
        """The field of a record with its label names; None if the labels are numbers to predict."""
        raise NotImplementedError

    def prepare(self, records: Iterable[Any]) -> tuple[list[Any], list[str]]:
        """Encode all records, and match their labels to the model's.

        Raises InputError that names every wrong record and, if labels are unknown, the labels of data and model.
        """
        records, name = list(records), self.label_field
        if name is None:
            return super().prepare(records)
        match = match_labels((values_of(record, name) for record in records), self.labels, self.numbered)
        if match.mixed:
            raise InputError(f"These examples cannot be used: {match.fault}.")
        try:
            examples, notes = super().prepare(records)
        except InputError as error:
            if match.fault is None:
                raise
            raise InputError(f"{error.message}; {match.fault}", error.problems) from error
        return examples, [*notes, *match.notes]

    def name_of(self, value: Any) -> str:
        """The model's name for a record's label."""
        index = label_index(value, self.labels, numbered=self.numbered)
        return str(value) if isinstance(index, str) else self.labels[index]

    def indices(self, fields: FieldReader, values: Sequence[Any], where: str) -> list[int]:
        """The indices of labels. Unknown labels add problems that begin with `where`, formatted with their position."""
        indices = []
        for number, value in enumerate(values, 1):
            index = label_index(value, self.labels, numbered=self.numbered)
            if isinstance(index, str):
                fields.fault(f"{where.format(number)}: {index}")
            else:
                indices.append(index)
        return indices

    def forward(self, model: Any, batch: TokenBatch, labels: Any = None) -> tuple[Any, Any]:
        """Logits and unreduced loss of a model with this objective's head and labels; raises InputError otherwise."""
        check_head(model, self.head, labels=self.labels)
        return forward(model, batch, labels)
