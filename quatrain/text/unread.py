"""Fields of chats that change nothing: neither in the rendered text nor in what of it is learned.

A template reads some fields and passes over others without a word. Which ones follows from rendering a row with each
field and without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.errors import InputError
from quatrain.reading import parse_json
from quatrain.text.chat import render_text
from quatrain.text.messages import ROLES
from quatrain.text.named_templates import template_for
from quatrain.text.records import AnyRecord, Conversation, Fault, Messages, Preference, Record

TRIES = 30
"""Rows on which a field is tried before it is said to change nothing."""

_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

Convert = Callable[[Record], list[AnyRecord]]


@dataclass
class _Field:
    """A field that a row has, or the messages of one role: how often, where first, and whether it changed anything."""

    first: str
    rows: int = 0
    tries: int = 0
    changes: bool = False


class UnreadFields:
    """Finds the fields of chats that a tokenizer's templates do not read."""

    def __init__(self, templates: Mapping[str, str], named: str, convert: Convert):
        """`named` is what messages call the templates; `convert` makes records of a row."""
        self.templates, self.named, self.convert = templates, named, convert
        self.fields: dict[tuple[str, str], _Field] = {}
        self.refused = 0
        self.refusal: tuple[str, str] | None = None

    def add(self, row: Record, records: list[AnyRecord]) -> None:
        """Looks at a row and the records that it became."""
        if not isinstance(row.value, Mapping) or not records:
            return
        found = list(_fields(row.value))
        for key in found:
            field = self.fields.setdefault(key, _Field(row.place))
            field.rows += 1
        open_ones = [key for key in found if not self.fields[key].changes and self.fields[key].tries < TRIES]
        if not open_ones and self.refusal is None:
            return
        try:
            whole = self._rendered(records)
        except InputError as error:
            self.refused += 1
            self.refusal = self.refusal or (row.place, " ".join([error.message, *error.problems[:1]]))
            return
        for key in open_ones:
            field = self.fields[key]
            field.tries += 1
            field.changes = self._changed(row, key, whole)

    def _changed(self, row: Record, key: tuple[str, str], whole: list[Any]) -> bool:
        """Whether a row without a field is rendered otherwise, or is none."""
        try:
            return self._rendered(self.convert(Record(row.place, _without(row.value, key)))) != whole
        except (Fault, InputError):
            return True

    def _rendered(self, records: list[AnyRecord]) -> list[Any]:
        found = []
        for record in records:
            for messages in _chats(record):
                source = template_for(self.templates, None, tools=messages.tools is not None)
                variables = {**_TOKENS, **messages.variables}
                prompt = messages[-1]["role"] != "assistant"
                found.append(
                    render_text(source, messages, add_generation_prompt=prompt, tools=messages.tools,
                                documents=messages.documents, variables=variables)
                )  # fmt: skip
        return found

    def findings(self) -> Iterator[tuple[str, str, str]]:
        """Each field that changes nothing: where it stands first, its name, and what is to be said."""
        for (role, name), field in self.fields.items():
            if field.changes or not field.tries:
                continue
            where = f"field {name!r}" + (f" of the {role}'s turns" if role else "")
            count = f"{field.rows:,} rows have it" if field.rows > 1 else "1 row has it"
            text = f"{where} changes nothing in the chat as the template {self.named} renders it; {count}"
            yield field.first, name, text


def _chats(record: AnyRecord) -> Iterator[Messages]:
    if isinstance(record, Conversation):
        messages = record.messages
        yield messages if isinstance(messages, Messages) else Messages(messages)
    elif isinstance(record, Preference):
        prompt = record.prompt if isinstance(record.prompt, Messages) else Messages(record.prompt)
        for answer in (record.chosen, record.rejected):
            yield prompt + answer


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _role_of(message: Mapping[str, Any]) -> str:
    role = message.get("role", message.get("from"))
    return role if isinstance(role, str) and (role in ROLES or len(role) < 20) else "others"


def _turns(value: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The fields of a row that hold messages."""
    for name, held in value.items():
        turns = held
        if isinstance(held, str) and held.startswith("[{"):  # in a table
            with contextlib.suppress(InputError):
                turns = parse_json(held, name, list)
        if isinstance(turns, list) and turns and all(map(_is_turn, turns)):
            yield name, turns


def _fields(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields of a row, as ("", name), and those of its messages, as (role, name); those without a value left out.

    A weight is always understood: it says whether the assistant's turn is learned.
    """
    yield from (("", name) for name, held in value.items() if held not in (None, "", [], {}))
    found = dict.fromkeys(
        (_role_of(message), name)
        for _, turns in _turns(value)
        for message in turns
        for name, held in message.items()
        if name not in ("role", "from", "content", "value") and held not in (None, "", [], {})
    )
    yield from (key for key in found if key != ("assistant", "weight") and key != ("gpt", "weight"))


def _without(value: Mapping[str, Any], key: tuple[str, str]) -> dict[str, Any]:
    """A row without one of its fields."""
    role, name = key
    if not role:
        return {each: held for each, held in value.items() if each != name}
    return {
        **value,
        **{
            field: [
                {each: held for each, held in message.items() if each != name or _role_of(message) != role}
                for message in turns
            ]
            for field, turns in _turns(value)
        },
    }
