"""Conversations and preference pairs out of files, whatever the format they were written in.

Four formats of conversations are told apart by their fields: `messages` (OpenAI, Hugging Face), `conversations`
(ShareGPT), `instruction`/`input`/`output` (Alpaca) and `prompt`/`completion`; and those of preference pairs around
`chosen` and `rejected`. Every fault is named with its place, its field and what to do, all at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quatrain.errors import InputError
from quatrain.text.download import Progress
from quatrain.text.records import RECORD_SUFFIXES, Problems, Record, read_records
from quatrain.text.sources import Skipped, find_files, is_record_file

Message = dict[str, Any]

_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
_FORMATS = (
    '{"messages": [{"role": …, "content": …}]}, {"conversations": [{"from": …, "value": …}]}, '
    '{"instruction": …, "input": …, "output": …} or {"prompt": …, "completion": …}'
)
_PREFERENCE_FORMATS = (
    '{"prompt": …, "chosen": …, "rejected": …}, with texts or lists of messages; or {"instruction": …, "chosen": …, '
    '"rejected": …}; or chosen and rejected conversations that begin alike'
)
_TURN = re.compile(r"\n\n(Human|Assistant):")


class _Fault(Exception):
    """What is wrong with a record, and the fix."""


@dataclass(frozen=True)
class Preference:
    """One judgement: after `prompt` the messages `chosen` are better than the messages `rejected`."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def read_conversations(
    source: str | Path, *, skipped: Skipped | None = None, progress: Progress | None = None
) -> Iterator[list[Message]]:
    """The conversations of a file, a folder or a catalog name, each a list of {"role": …, "content": …}.

    JSON lines, JSON lists, CSV, TSV and Parquet are read, each but Parquet also as .gz; the format of a record is
    told by its fields. Raises InputError with the first 20 faults and the count of all, each with file and line.
    """
    return _read(source, _conversation, "conversations", skipped, progress)


def read_preferences(
    source: str | Path, *, skipped: Skipped | None = None, progress: Progress | None = None
) -> Iterator[Preference]:
    """The preference pairs of a file, a folder or a catalog name; formats and errors as for `read_conversations`.

    Two whole dialogues are parted where they begin to differ, at the start of a message.
    """
    return _read(source, _preference, "preference pairs", skipped, progress)


def detect(source: str | Path, *, progress: Progress | None = None) -> Literal["text", "chat", "preference"]:
    """What `source` holds, by the first record of its first file: plain text, conversations or preference pairs."""
    path = find_files(source, progress=progress)[0]
    if not is_record_file(path):
        return "text"
    fields = next((record.value for record in read_records(path) if isinstance(record.value, dict)), {})
    if {"chosen", "rejected"} <= fields.keys():
        return "preference"
    chat = {"messages", "conversations"} & fields.keys() or {"instruction", "output"} <= fields.keys()
    return "chat" if chat or any({*pair} <= fields.keys() for pair in _PAIRS) else "text"


def _read(
    source: str | Path,
    convert: Callable[[Any], Any],
    what: str,
    skipped: Skipped | None,
    progress: Progress | None,
) -> Iterator[Any]:
    files = find_files(source, skipped=skipped, progress=progress)
    plain = [path for path in files if not is_record_file(path)]
    if plain:
        endings = ", ".join(RECORD_SUFFIXES)
        raise InputError(
            f"{what} are read from files with the endings {endings} (or those and .gz)",
            [f"{path}: plain text, no {what}" for path in plain],
        )
    return _converted(files, convert, what)


def _converted(files: list[Path], convert: Callable[[Any], Any], what: str) -> Iterator[Any]:
    problems = Problems()
    count = 0
    for path in files:
        for record in read_records(path):
            try:
                value = convert(_value(record))
            except _Fault as fault:
                problems.add(f"{record.place}: {fault}")
                continue
            count += 1
            if not problems:
                yield value
    name = files[0] if len(files) == 1 else f"{len(files)} files"
    if problems:
        raise problems.error(f"{name} cannot be read as {what}")
    if not count:
        raise InputError(f"there are no {what} in {name}")


def _value(record: Record) -> Any:
    if record.fault is not None:
        raise _Fault(record.fault)
    return record.value


def _conversation(record: Any) -> list[Message]:
    fields = _fields(record, _FORMATS)
    if "messages" in fields or "conversations" in fields:
        name = "messages" if "messages" in fields else "conversations"
        messages = _messages(fields[name], name)
        if isinstance(fields.get("system"), str) and fields["system"] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": fields["system"]})
        if not any(message["role"] == "assistant" for message in messages):
            raise _Fault(f"field {name!r}: nothing is said by the assistant, so nothing can be learned; remove it")
        return messages
    if "instruction" in fields:
        return [*_alpaca_prompt(fields), _said("assistant", _text(fields, "output"))]
    for asked, answered in _PAIRS:
        if asked in fields and answered in fields:
            return [*_prompt(fields, asked), *_answer(fields, answered)]
    raise _Fault(f"fields {_names(fields)}: no conversation; write {_FORMATS}")


def _preference(record: Any) -> Preference:
    fields = _fields(record, _PREFERENCE_FORMATS)
    missing = [name for name in ("chosen", "rejected") if name not in fields]
    if missing:
        raise _Fault(f"no field {' and '.join(map(repr, missing))}; write {_PREFERENCE_FORMATS}")
    chosen, rejected = (_answer(fields, name) for name in ("chosen", "rejected"))
    if "prompt" in fields:
        return Preference(_prompt(fields, "prompt"), chosen, rejected)
    if "instruction" in fields:
        return Preference(_alpaca_prompt(fields), chosen, rejected)
    if "question" in fields:
        return Preference(_prompt(fields, "question"), chosen, rejected)
    for name in ("messages", "conversations"):
        if name in fields:
            return Preference(_messages(fields[name], name), chosen, rejected)
    return _parted(
        *(
            _dialogue(fields[name]) if isinstance(fields[name], str) else answer
            for name, answer in (("chosen", chosen), ("rejected", rejected))
        )
    )


def _parted(chosen: list[Message], rejected: list[Message]) -> Preference:
    """Two whole conversations as their common beginning and two endings."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    # Equal conversations still end in an answer.
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    if same < 1:
        raise _Fault(f"chosen and rejected do not begin alike and there is no prompt; write {_PREFERENCE_FORMATS}")
    return Preference(chosen[:same], chosen[same:], rejected[same:])


def _dialogue(text: str) -> list[Message]:
    """A dialogue in one text, in the form of Anthropic's HH-RLHF (Bai et al. 2022)."""
    before, *turns = _TURN.split(text)
    if not turns or before.strip():
        raise _Fault(f"no prompt beside chosen and rejected; write {_PREFERENCE_FORMATS}")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [_said(roles[name], said.removeprefix(" ")) for name, said in pairs]


def _fields(record: Any, formats: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise _Fault(f"found {type(record).__name__}, expected an object: {formats}")
    return record


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in list(fields)[:12]) or "(none)"


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise _Fault(f"no field {name!r} beside {_names(fields)}; add it")
    value = fields[name]
    if not isinstance(value, str):
        raise _Fault(f"field {name!r} is {_kind(value)}, must be text")
    _check_characters(value, name)
    return value


def _check_characters(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise _Fault(f"field {name!r}: half of a character (\\u{code:04x}) at {error.start}; remove it") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "text")


def _prompt(fields: dict[str, Any], name: str) -> list[Message]:
    if isinstance(fields[name], list):
        return _messages(fields[name], name)
    system = [_said("system", fields["system"])] if isinstance(fields.get("system"), str) and fields["system"] else []
    return [*system, _said("user", _text(fields, name))]


def _answer(fields: dict[str, Any], name: str) -> list[Message]:
    value = fields[name]
    if isinstance(value, dict):
        return _messages([value], name)
    if isinstance(value, list):
        return _messages(value, name)
    return [_said("assistant", _text(fields, name))]


def _alpaca_prompt(fields: dict[str, Any]) -> list[Message]:
    """Alpaca's fields as messages: the input goes under the instruction (Taori et al. 2023)."""
    messages = []
    if isinstance(fields.get("system"), str) and fields["system"]:
        messages.append(_said("system", fields["system"]))
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _Fault("field 'history': must be a list of [question, answer] pairs of texts")
        messages += [_said("user", pair[0]), _said("assistant", pair[1])]
    instruction = _text(fields, "instruction")
    given = _text(fields, "input") if fields.get("input") is not None else ""
    return [*messages, _said("user", f"{instruction}\n\n{given}" if given.strip() else instruction)]


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, str) and value[:1] == "[":  # CSV and Parquet files may hold the list as JSON
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise _Fault(f"field {name!r}: not valid JSON ({error.msg})") from error
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else _kind(value)
        raise _Fault(f"field {name!r} is {kind}, must be a list of messages")
    return [_message(each, f"{name}[{number}]") for number, each in enumerate(value)]


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise _Fault(f'field {place!r} is {_kind(value)}, must be {{"role": …, "content": …}}')
    role_name, content_name = ("from", "value") if "from" in value else ("role", "content")
    if role_name not in value:
        raise _Fault(f"field {place!r}: no 'role' beside {_names(value)}; add it")
    said = value[role_name]
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        allowed = "user, assistant, tool" if role_name == "role" else "human, gpt, function_call, observation"
        raise _Fault(f"field '{place}.{role_name}' is {said!r}; allowed are system, {allowed}")
    content = value.get(content_name)
    extra = {key: value[key] for key in ("tool_calls", "tool_call_id", "name") if value.get(key) is not None}
    if isinstance(said, str) and said.lower() == "function_call":
        return {"role": role, "content": "", "tool_calls": [_call(content, f"{place}.{content_name}")]}
    if content is None and extra.get("tool_calls"):
        return {"role": role, "content": "", **extra}
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if content_name not in value:
        raise _Fault(f"field {place!r}: no {content_name!r} beside {_names(value)}; add it")
    if not isinstance(content, str):
        raise _Fault(f"field '{place}.{content_name}' is {_kind(content)}, must be text")
    _check_characters(content, f"{place}.{content_name}")
    return {"role": role, "content": content, **extra}


def _call(content: Any, place: str) -> dict[str, Any]:
    """A ShareGPT function call, {"name": …, "arguments": …} as JSON text, in the form of OpenAI's tool calls."""
    try:
        call = json.loads(content) if isinstance(content, str) else content
    except json.JSONDecodeError as error:
        raise _Fault(f"field {place!r}: not valid JSON ({error.msg})") from error
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise _Fault(f'field {place!r}: must be {{"name": …, "arguments": …}}')
    return {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
