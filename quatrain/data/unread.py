"""Finds chat fields without effect: those that change neither the rendered text nor the mask of assistant tokens.

A template silently ignores some fields. Rendering a row with and without a field shows whether it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.messages import ABOUT
from quatrain.data.records import AnyRecord, Conversation, Fault, Message, Messages, Preference, RatedAnswer, Row
from quatrain.tokenizers.chat import render_text
from quatrain.tokenizers.templates import template_for

TRIES = 30
"""Rows on which a field is tried before it is reported as without effect."""

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values of a field that count as absent."""

_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

Convert = Callable[[Row], list[AnyRecord]]


@dataclass
class _Field:
    """A field of rows, or of messages of one role: its first place, its count, and whether it has an effect."""

    first: str
    rows: int = 0
    tries: int = 0
    changes: bool = False


class UnreadFields:
    """Finds the chat fields that a tokenizer's templates do not read."""

    def __init__(self, templates: Mapping[str, str], named: str, convert: Convert):
        """`named` is the name of the templates in messages; `convert` converts a row to records."""
        self.templates, self.named, self.convert = templates, named, convert
        self.fields: dict[tuple[str, str], _Field] = {}
        self.refused = 0
        self.refusal: tuple[str, str] | None = None

    def add(self, row: Row, records: list[AnyRecord]) -> None:
        """Add a row and its records."""
        if not isinstance(row.value, Mapping) or not records:
            return
        chats = [chat for record in records for chat in _chats(record)]
        keys = [("", name) for name, value in row.value.items() if value not in EMPTY] + list(_fields(chats))
        for key in keys:
            field = self.fields.setdefault(key, _Field(row.place))
            field.rows += 1
        open_ones = [key for key in keys if not self.fields[key].changes and self.fields[key].tries < TRIES]
        if not open_ones and self.refusal is None:
            return
        try:
            whole = self._rendered(chats)
        except InputError as error:
            self.refused += 1
            self.refusal = self.refusal or (row.place, " ".join([error.message, *error.problems[:1]]))
            return
        for key in open_ones:
            field = self.fields[key]
            field.tries += 1
            field.changes = self._changed(row, chats, key, whole)

    def _changed(self, row: Row, chats: list[Messages], key: tuple[str, str], whole: list[Any]) -> bool:
        """Whether a row without the field is rendered differently or is invalid."""
        role, name = key
        try:
            if role:
                rest = [chat.of(_without(message, role, name) for message in chat) for chat in chats]
            else:
                value = {each: held for each, held in row.value.items() if each != name}
                rest = [chat for record in self.convert(Row(row.place, value)) for chat in _chats(record)]
            return self._rendered(rest) != whole
        except (Fault, InputError):
            return True

    def _rendered(self, chats: list[Messages]) -> list[Any]:
        rendered = []
        for chat in chats:
            source = template_for(self.templates, None, tools=chat.tools is not None)
            prompt = chat[-1]["role"] != "assistant"
            rendered.append(
                render_text(source, chat, add_generation_prompt=prompt, tools=chat.tools, documents=chat.documents,
                            variables={**_TOKENS, **chat.variables})
            )  # fmt: skip
        return rendered

    def findings(self) -> Iterator[tuple[str, str, str]]:
        """The fields without effect, as (first place, name, text)."""
        for (role, name), field in self.fields.items():
            if field.changes or not field.tries:
                continue
            where = f"field {name!r}" + (f" of the {role}'s turns" if role else "")
            count = f"{field.rows:,} rows have it" if field.rows > 1 else "1 row has it"
            text = f"{where} has no effect on the chat with the template {self.named}; {count}"
            yield field.first, name, text


def _chats(record: AnyRecord) -> Iterator[Messages]:
    if isinstance(record, Conversation):
        messages = record.messages
        yield messages if isinstance(messages, Messages) else Messages(messages)
    elif isinstance(record, Preference):
        prompt = record.prompt if isinstance(record.prompt, Messages) else Messages(record.prompt)
        for answer in (record.chosen, record.rejected):
            yield prompt + answer
    elif isinstance(record, RatedAnswer):
        yield Messages(record.prompt) + record.completion


def _fields(chats: list[Messages]) -> Iterator[tuple[str, str]]:
    """The fields of messages, as (role, name), that have a value.

    The weight of an assistant turn is excluded: it always has an effect, on the mask.
    """
    keys = dict.fromkeys(
        (str(message["role"]), name)
        for chat in chats
        for message in chat
        for name, value in message.items()
        if name not in ("role", "content") and value not in EMPTY
    )
    yield from (key for key in keys if key != ("assistant", "weight"))


def _without(message: Message, role: str, name: str) -> Message:
    """A message of a role without one of its fields; if nothing is left, with empty content."""
    if message["role"] != role or name not in message:
        return message
    rest = {field: value for field, value in message.items() if field != name and value is not None}
    return rest if set(rest) - ABOUT or "content" in rest else {**rest, "content": ""}
