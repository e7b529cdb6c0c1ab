"""Prepares and checks the messages of conversations for a chat template.

The rules are those of transformers' `apply_chat_template`: fields that are None are removed, reasoning is accepted
under each of its names, and a template gets only JSON's types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""The roles of chat formats. A template may name others."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields for the assistant's reasoning. Most templates read the first, those of gpt-oss the second."""

MAX_DEPTH = 100
"""Limit on nested lists and objects in a message."""

_MEANT = {
    "human": "user",
    "prompter": "user",
    "instruction": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant, with tool_calls",
    "observation": "tool",
}
ABOUT = frozenset(("role", "content", "name", "weight", "tool_call_id", "id", "type"))
"""Fields that are not content."""


def content_text(message: Mapping[str, Any]) -> str:
    """The content of a message as one text: the texts of its parts joined, "" if there are none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in texts if isinstance(text, str))
    return "" if content is None else str(content)


def is_empty(message: Mapping[str, Any]) -> bool:
    """Whether a message has neither content nor anything in place of it, such as tool calls."""
    return not content_text(message).strip() and not any(message.get(key) for key in message if key not in ABOUT)


def has_calls(message: Mapping[str, Any]) -> bool:
    """Whether a message has tool calls, in OpenAI's current or former format."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether an assistant turn has labels: always, except with `"weight": 0`."""
    weight = message.get("weight")
    return weight is None or bool(weight)


def weight_fault(message: Mapping[str, Any]) -> str | None:
    """The fault of a turn's weight; None if it is valid."""
    weight = message.get("weight")
    if weight is None or (isinstance(weight, bool | int | float) and weight in (0, 1)):
        return None
    return f"the weight {format_value(weight)}: allowed are 0 (the turn is not learned) and 1"


def content_fault(content: Any, role: Any) -> str | None:
    """The fault of a message's content, which is text or a list of parts, or for a tool also an object."""
    if isinstance(content, str) or (isinstance(content, Mapping) and role in ("tool", "function")):
        return None
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, Mapping) or not ({"type", "text"} & part.keys()):
                return f'part {number} is {format_value(part, 40)}, must be such as {{"type": "text", "text": …}}'
            if part.get("type", "text") == "text" and not isinstance(part.get("text"), str):
                return f"part {number} has no text"
        return None
    return "must be text"


def joined(message: dict[str, Any]) -> dict[str, Any] | None:
    """A message with its text parts joined; None if a part is not text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    if not all(isinstance(part.get("text"), str) and part.get("type", "text") == "text" for part in content):
        return None
    return {**message, "content": content_text(message)}


def check_messages(messages: Sequence[Mapping[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages as a template gets them. Raises InputError with all faults."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError('a conversation is a list of at least one message, each {"role": …, "content": …}')
    problems: list[str] = []
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            problems.append(
                f'message {number}: {format_value(message)} is not a message; write {{"role": …, "content": …}}'
            )
            continue
        message = plain({key: value for key, value in message.items() if value is not None}, f"message {number}")
        faults = [_role_fault(message, template), _missing(message), weight_fault(message)]
        problems += [f"message {number}: {fault}" for fault in faults if fault]
        checked.append(_with_reasoning(message))
    if problems:
        raise InputError("the conversation cannot be rendered", problems)
    return checked


def _role_fault(message: Mapping[str, Any], template: str) -> str | None:
    if "role" not in message:
        return f'no "role"; allowed are {", ".join(ROLES)}'
    role = message["role"]
    if isinstance(role, str) and (role in ROLES or f"'{role}'" in template or f'"{role}"' in template):
        return None
    meant = _MEANT.get(role.lower()) if isinstance(role, str) else None
    hint = f"; did you mean {meant}?" if meant else ""
    return f"role {format_value(role)}: allowed are {', '.join(ROLES)}{hint}"


def _missing(message: Mapping[str, Any]) -> str | None:
    if "content" in message:
        fault = content_fault(message["content"], message.get("role"))
        return fault and f"content is {type(message['content']).__name__}, {fault}"
    if set(message) <= ABOUT:
        return 'no "content"; write the text of the turn ("" for an empty one)'
    return None


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its reasoning under the names that templates read."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A value converted to JSON's types, so that a template cannot reach methods of other objects.

    Raises InputError for a value that is nested too deeply.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth > MAX_DEPTH:
        raise InputError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key, where, depth + 1): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, where, depth + 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item(), where, depth + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(fields, where, depth + 1)
    if callable(dump := getattr(value, "model_dump", None)):
        return plain(dump(), where, depth + 1)
    return f"<{type(value).__name__}>"
