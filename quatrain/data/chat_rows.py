"""Reads chats from the fields of a row, which tell its format.

`messages` (OpenAI, Hugging Face), `conversations` (ShareGPT), `instruction`/`input`/`output` (Alpaca) or
`prompt`/`completion`. Every fault names its field and a fix; all faults of a row are raised at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import lone_surrogate, parse_json
from quatrain.core.wording import type_name
from quatrain.data.formats import CHAT_PAIRS
from quatrain.data.messages import ABOUT, ROLES, content_fault, weight_fault
from quatrain.data.records import Conversation, Fault, Message, field_names, raise_together

# Role names of public data sets -> roles of chat templates.
_ROLES = {
    **{role: role for role in ROLES},
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_FORMATS = (
    '{"messages": [{"role": …, "content": …}]}, {"conversations": [{"from": …, "value": …}]}, '
    '{"instruction": …, "input": …, "output": …} or {"prompt": …, "completion": …}'
)

_TEMPLATE_LISTS = (("tools", "functions"), ("documents",))
"""Inputs of a chat template that are lists of objects, each under the names that data sets use."""

TEMPLATE_INPUTS = ("tools", "functions", "documents", "chat_template_kwargs")
"""Fields of a row that the chat template gets, whichever columns hold the conversation."""


def to_conversations(fields: dict[str, Any]) -> list[Conversation]:
    """The conversations of a row: one, or one per instance of a Self-Instruct seed task (Wang et al. 2022, arXiv
    2212.10560). Raises Fault with all faults.
    """
    if "instances" in fields and "instruction" in fields and "output" not in fields:
        return [Conversation(messages) for messages in _instances(fields)]
    faults: list[Fault] = []
    messages: list[Message] = []
    try:
        messages = _conversation(fields)
    except Fault as fault:
        faults.append(fault)
    inputs = template_inputs(fields, faults)
    raise_together(faults)
    return [Conversation(messages, **inputs)]


def template_inputs(fields: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """A row's tools, documents and chat_template_kwargs, which may be JSON text; adds faults to `faults`."""
    inputs: dict[str, Any] = {}
    for names in _TEMPLATE_LISTS:
        name = next((name for name in names if fields.get(name) not in (None, "")), None)
        if name is None:
            continue
        if name == "documents" and not _are_objects(fields[name]):
            continue  # a column with another meaning, which no template reads; `data check` reports it
        try:
            value = _from_json(fields[name], name, list)
            if not all(isinstance(item, dict) for item in value):
                raise Fault(f"field {name!r}: must be a list of objects")
            inputs[names[0]] = value
        except Fault as fault:
            faults.append(fault)
    if fields.get("chat_template_kwargs") not in (None, ""):
        try:
            inputs["variables"] = _from_json(fields["chat_template_kwargs"], "chat_template_kwargs", dict)
        except Fault as fault:
            faults.append(fault)
    return inputs


def _are_objects(value: Any) -> bool:
    """Whether a value is a list of objects, or JSON text that may be one."""
    if isinstance(value, str):
        return value.lstrip()[:1] == "["
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _from_json(value: Any, name: str, kind: type) -> Any:
    """A list or object, which a table may hold as JSON text."""
    if isinstance(value, str):
        try:
            return parse_json(value, f"field {name!r}", kind)
        except InputError as error:
            raise Fault(error.message, name) from error
    if not isinstance(value, kind):
        raise Fault(f"field {name!r} is {type_name(value)}, must be {'a list' if kind is list else 'an object'}")
    return value


def parsed(text: str, name: str) -> Any:
    """The value of JSON text in the field `name`. Raises Fault for invalid or too deeply nested JSON."""
    try:
        return parse_json(text, "the text", Any)
    except InputError as error:
        raise Fault(f"field {name!r}: not valid JSON ({error.message})", name) from error


def to_prompts(fields: dict[str, Any]) -> list[list[Message]]:
    """The prompts of a row, without answers: the first of the `turns` of MT-bench (Zheng et al. 2023, arXiv
    2306.05685), a `prompt`, or an `instruction` with its `input`. Raises Fault.
    """
    if "turns" in fields:
        turns = fields["turns"]
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
            raise Fault("field 'turns': must be a list of texts with at least one", "turns")
        return [[turn("user", turns[0])]]
    return [prompt_messages(fields, "prompt") if "prompt" in fields else alpaca_prompt(fields)]


def _instances(fields: dict[str, Any]) -> list[list[Message]]:
    instances = fields["instances"]
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise Fault('field \'instances\': must be a list of {"input": …, "output": …}', "instances")
    return [_conversation({"instruction": fields["instruction"], **instance}) for instance in instances]


def _conversation(fields: dict[str, Any]) -> list[Message]:
    if "messages" in fields or "conversations" in fields:
        name = "messages" if "messages" in fields else "conversations"
        messages = messages_of(fields[name], name)
        if isinstance(fields.get("system"), str) and fields["system"] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": fields["system"]})
        if not any(message["role"] == "assistant" for message in messages):
            raise Fault(f"field {name!r}: it has no turn of the assistant, so nothing can be learned; remove it")
        return messages
    if "instruction" in fields:
        return _concatenated(lambda: alpaca_prompt(fields), lambda: [turn("assistant", text_field(fields, "output"))])
    for prompt, answer in CHAT_PAIRS:
        if prompt in fields and answer in fields:
            return _concatenated(partial(prompt_messages, fields, prompt), partial(answer_messages, fields, answer))
    raise Fault(f"fields {field_names(fields)}: not a conversation; write {_FORMATS}")


def _concatenated(*parts: Callable[[], list[Message]]) -> list[Message]:
    """The messages of several parts, concatenated. Raises Fault with the faults of all parts."""
    messages: list[Message] = []
    faults = []
    for part in parts:
        try:
            messages += part()
        except Fault as fault:
            faults.append(fault)
    raise_together(faults)
    return messages


def turn(role: str, content: str) -> Message:
    """A message."""
    return {"role": role, "content": content}


def text_field(fields: dict[str, Any], name: str) -> str:
    """The text of a field. Raises Fault if it is missing or no text."""
    if name not in fields:
        raise Fault(f"no field {name!r}; the row has {field_names(fields)}; add it")
    value = fields[name]
    if not isinstance(value, str):
        raise Fault(f"field {name!r} is {type_name(value)}, must be text")
    _check_characters(value, name)
    return value


def _check_characters(text: str, name: str) -> None:
    if (fault := lone_surrogate(text)) is not None:
        raise Fault(f"field {name!r}: {fault}")


def prompt_messages(fields: dict[str, Any], name: str) -> list[Message]:
    """The messages of a prompt: a list of messages, or a text with the row's `system` before it. Raises Fault."""
    if isinstance(fields[name], list):
        return messages_of(fields[name], name)
    system = [turn("system", fields["system"])] if isinstance(fields.get("system"), str) and fields["system"] else []
    return [*system, turn("user", text_field(fields, name))]


def answer_messages(fields: dict[str, Any], name: str) -> list[Message]:
    """The messages of an answer: a list of messages, one message, or the assistant's text. Raises Fault."""
    value = fields[name]
    if isinstance(value, dict):
        return messages_of([value], name)
    if isinstance(value, list):
        return messages_of(value, name)
    return [turn("assistant", text_field(fields, name))]


def alpaca_prompt(fields: dict[str, Any]) -> list[Message]:
    """The prompt of an Alpaca row: the instruction with the input below it (Taori et al. 2023)."""
    messages = []
    if isinstance(fields.get("system"), str) and fields["system"]:
        messages.append(turn("system", fields["system"]))
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Fault("field 'history': must be a list of [question, answer] pairs of texts")
        messages += [turn("user", pair[0]), turn("assistant", pair[1])]
    instruction = text_field(fields, "instruction")
    context = text_field(fields, "input") if fields.get("input") is not None else ""
    return [*messages, turn("user", f"{instruction}\n\n{context}" if context.strip() else instruction)]


def messages_of(value: Any, name: str) -> list[Message]:
    """A list of messages, which may be JSON text, with the roles of chat templates. Raises Fault with all faults."""
    if isinstance(value, str) and value[:1] == "[":  # CSV and Parquet files may hold the list as JSON
        value = parsed(value, name)
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type_name(value)
        raise Fault(f"field {name!r} is {kind}, must be a list of messages")
    messages, faults = [], []
    for number, message in enumerate(value):
        try:
            messages.append(_message(message, f"{name}[{number}]"))
        except Fault as fault:
            faults.append(fault)
    raise_together(faults)
    return messages


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise Fault(f'field {place!r} is {type_name(value)}, must be {{"role": …, "content": …}}')
    role_name, content_name = ("from", "value") if "from" in value else ("role", "content")
    if role_name not in value:
        raise Fault(f"field {place!r}: no 'role'; the message has {field_names(value)}; add it")
    role_value = value[role_name]
    role = _ROLES.get(role_value.lower()) if isinstance(role_value, str) else None
    if role is None:
        allowed = "user, assistant, tool" if role_name == "role" else "human, gpt, function_call, observation"
        raise Fault(f"field '{place}.{role_name}' is {role_value!r}; allowed are system, {allowed}")
    content = value.get(content_name)
    rest = {key: item for key, item in value.items() if key not in (role_name, content_name)}
    if isinstance(role_value, str) and role_value.lower() == "function_call" and "function_call" not in value:
        return {"role": role, "content": "", "tool_calls": [_call(content, f"{place}.{content_name}")], **rest}
    if fault := weight_fault(value):
        raise Fault(f"field '{place}.weight': {fault}")
    replacements = {key for key, item in rest.items() if item is not None} - ABOUT
    if content_name not in value and not replacements:
        raise Fault(f"field {place!r}: no {content_name!r}; the message has {field_names(value)}; add it")
    if content is None and not replacements:
        raise Fault(f"field '{place}.{content_name}' is null, must be text")
    if content is not None and (fault := content_fault(content, role)):
        raise Fault(f"field '{place}.{content_name}' is {type_name(content)}, {fault}")
    for text in [content] if not isinstance(content, list) else [part.get("text") for part in content]:
        if isinstance(text, str):
            _check_characters(text, f"{place}.{content_name}")
    return {"role": role, **({"content": content} if content_name in value else {}), **rest}


def _call(content: Any, place: str) -> dict[str, Any]:
    """A ShareGPT function call, JSON text {"name": …, "arguments": …}, as an OpenAI tool call."""
    call = parsed(content, place) if isinstance(content, str) else content
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise Fault(f'field {place!r}: must be {{"name": …, "arguments": …}}')
    return {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
