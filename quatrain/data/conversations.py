"""Converts rows of every chat format to conversations, prompts and preference pairs.

The fields of a row tell its format: `messages` (OpenAI, Hugging Face), `conversations` (ShareGPT),
`instruction`/`input`/`output` (Alpaca) or `prompt`/`completion`; preference pairs have `chosen` and `rejected`. All
faults of a row are raised at once, each with its field and fix.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import parse_json
from quatrain.core.wording import type_name
from quatrain.data.formats import CHAT_PAIRS
from quatrain.data.messages import ABOUT, ROLES, content_fault, weight_fault
from quatrain.data.records import Conversation, Fault, Message, Messages, Preference, raise_together

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
_PREFERENCE_FORMATS = (
    '{"prompt": …, "chosen": …, "rejected": …}, with texts or lists of messages; or {"instruction": …, "chosen": …, '
    '"rejected": …}; or chosen and rejected conversations that begin alike'
)
_TURN = re.compile(r"\n\n(Human|Assistant):")


_BESIDE = (("tools", "functions"), ("documents",))
"""Other inputs of a chat template, under the names that data sets use."""


BESIDE = ("tools", "functions", "documents", "chat_template_kwargs")
"""Fields of a row that reach the chat template, whichever columns hold the conversation."""


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
    beside = _beside(fields, faults)
    raise_together(faults)
    return [Conversation(messages, **beside)]


def _beside(fields: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """A row's tools, documents and chat_template_kwargs, which may be JSON text; adds what is wrong to `faults`."""
    found: dict[str, Any] = {}
    for names in _BESIDE:
        name = next((name for name in names if fields.get(name) not in (None, "")), None)
        if name is None:
            continue
        if name == "documents" and not _are_objects(fields[name]):
            continue  # a column with another meaning, which no template reads; `data check` reports it
        try:
            value = _from_json(fields[name], name, list)
            if not all(isinstance(each, dict) for each in value):
                raise Fault(f"field {name!r}: must be a list of objects")
            found[names[0]] = value
        except Fault as fault:
            faults.append(fault)
    if fields.get("chat_template_kwargs") not in (None, ""):
        try:
            found["variables"] = _from_json(fields["chat_template_kwargs"], "chat_template_kwargs", dict)
        except Fault as fault:
            faults.append(fault)
    return found


def _are_objects(value: Any) -> bool:
    """Whether a value is a list of objects, or JSON text that may be one."""
    if isinstance(value, str):
        return value.lstrip()[:1] == "["
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


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
        return [[_turn("user", turns[0])]]
    return [_prompt(fields, "prompt") if "prompt" in fields else _alpaca_prompt(fields)]


def to_preferences(fields: dict[str, Any]) -> list[Preference]:
    """The preference pair of a row; none if two answers were judged equal. Raises Fault."""
    if {"output_1", "output_2", "preference"} <= fields.keys() and "chosen" not in fields:
        return _judged(fields)
    preference = _preference(fields)
    faults: list[Fault] = []
    beside = _beside(fields, faults)
    raise_together(faults)
    return [Preference(Messages(preference.prompt, **beside), preference.chosen, preference.rejected)]


def _instances(fields: dict[str, Any]) -> list[list[Message]]:
    instances = fields["instances"]
    if not isinstance(instances, list) or not all(isinstance(each, dict) for each in instances):
        raise Fault('field \'instances\': must be a list of {"input": …, "output": …}', "instances")
    return [_conversation({"instruction": fields["instruction"], **each}) for each in instances]


def _judged(fields: dict[str, Any]) -> list[Preference]:
    """A judgement of AlpacaEval (Li et al. 2023): 1 or 2 is the better output, 0 and 1.5 are ties."""
    judged = fields["preference"]
    try:
        which = float(judged)
    except (TypeError, ValueError):
        which = -1.0
    if which not in (0.0, 1.0, 1.5, 2.0):
        raise Fault(f"field 'preference' is {judged!r}; allowed are 1 and 2, and 0 or 1.5 for a tie", "preference")
    if which in (0.0, 1.5):
        return []
    better, worse = ("output_1", "output_2") if which == 1.0 else ("output_2", "output_1")
    answers = ([_turn("assistant", _text(fields, name))] for name in (better, worse))
    return [Preference(_alpaca_prompt(fields), *answers)]


def _conversation(fields: dict[str, Any]) -> list[Message]:
    if "messages" in fields or "conversations" in fields:
        name = "messages" if "messages" in fields else "conversations"
        messages = _messages(fields[name], name)
        if isinstance(fields.get("system"), str) and fields["system"] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": fields["system"]})
        if not any(message["role"] == "assistant" for message in messages):
            raise Fault(f"field {name!r}: nothing is said by the assistant, so nothing can be learned; remove it")
        return messages
    if "instruction" in fields:
        return _joined(lambda: _alpaca_prompt(fields), lambda: [_turn("assistant", _text(fields, "output"))])
    for asked, answered in CHAT_PAIRS:
        if asked in fields and answered in fields:
            return _joined(partial(_prompt, fields, asked), partial(_answer, fields, answered))
    raise Fault(f"fields {_names(fields)}: no conversation; write {_FORMATS}")


def _preference(fields: dict[str, Any]) -> Preference:
    missing = [name for name in ("chosen", "rejected") if name not in fields]
    if missing:
        raise Fault(f"no field {' and '.join(map(repr, missing))}; write {_PREFERENCE_FORMATS}")
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


def _joined(*parts: Callable[[], list[Message]]) -> list[Message]:
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


def _parted(chosen: list[Message], rejected: list[Message]) -> Preference:
    """Two whole conversations split into their common prompt and two answers."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    # Of equal conversations, the last message is the answer.
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    if same < 1:
        raise Fault(f"chosen and rejected do not begin alike and there is no prompt; write {_PREFERENCE_FORMATS}")
    return Preference(chosen[:same], chosen[same:], rejected[same:])


def _dialogue(text: str) -> list[Message]:
    """The messages of a dialogue in one text, in the form of Anthropic's HH-RLHF (Bai et al. 2022)."""
    before, *turns = _TURN.split(text)
    if not turns or before.strip():
        raise Fault(f"no prompt beside chosen and rejected; write {_PREFERENCE_FORMATS}")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [_turn(roles[name], text.removeprefix(" ")) for name, text in pairs]


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in list(fields)[:12]) or "(none)"


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise Fault(f"no field {name!r}; the row has {_names(fields)}; add it")
    value = fields[name]
    if not isinstance(value, str):
        raise Fault(f"field {name!r} is {type_name(value)}, must be text")
    _check_characters(value, name)
    return value


def _check_characters(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise Fault(f"field {name!r}: half of a character (\\u{code:04x}) at {error.start}; remove it") from error


def _prompt(fields: dict[str, Any], name: str) -> list[Message]:
    if isinstance(fields[name], list):
        return _messages(fields[name], name)
    system = [_turn("system", fields["system"])] if isinstance(fields.get("system"), str) and fields["system"] else []
    return [*system, _turn("user", _text(fields, name))]


def _answer(fields: dict[str, Any], name: str) -> list[Message]:
    value = fields[name]
    if isinstance(value, dict):
        return _messages([value], name)
    if isinstance(value, list):
        return _messages(value, name)
    return [_turn("assistant", _text(fields, name))]


def _alpaca_prompt(fields: dict[str, Any]) -> list[Message]:
    """The prompt of an Alpaca row: the instruction with the input below it (Taori et al. 2023)."""
    messages = []
    if isinstance(fields.get("system"), str) and fields["system"]:
        messages.append(_turn("system", fields["system"]))
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Fault("field 'history': must be a list of [question, answer] pairs of texts")
        messages += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    instruction = _text(fields, "instruction")
    given = _text(fields, "input") if fields.get("input") is not None else ""
    return [*messages, _turn("user", f"{instruction}\n\n{given}" if given.strip() else instruction)]


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, str) and value[:1] == "[":  # CSV and Parquet files may hold the list as JSON
        value = parsed(value, name)
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type_name(value)
        raise Fault(f"field {name!r} is {kind}, must be a list of messages")
    messages, faults = [], []
    for number, each in enumerate(value):
        try:
            messages.append(_message(each, f"{name}[{number}]"))
        except Fault as fault:
            faults.append(fault)
    raise_together(faults)
    return messages


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise Fault(f'field {place!r} is {type_name(value)}, must be {{"role": …, "content": …}}')
    role_name, content_name = ("from", "value") if "from" in value else ("role", "content")
    if role_name not in value:
        raise Fault(f"field {place!r}: no 'role'; the message has {_names(value)}; add it")
    written = value[role_name]
    role = _ROLES.get(written.lower()) if isinstance(written, str) else None
    if role is None:
        allowed = "user, assistant, tool" if role_name == "role" else "human, gpt, function_call, observation"
        raise Fault(f"field '{place}.{role_name}' is {written!r}; allowed are system, {allowed}")
    content = value.get(content_name)
    rest = {key: each for key, each in value.items() if key not in (role_name, content_name)}
    if isinstance(written, str) and written.lower() == "function_call" and "function_call" not in value:
        return {"role": role, "content": "", "tool_calls": [_call(content, f"{place}.{content_name}")], **rest}
    if fault := weight_fault(value):
        raise Fault(f"field '{place}.weight': {fault}")
    carries = {key for key, each in rest.items() if each is not None} - ABOUT
    if content_name not in value and not carries:
        raise Fault(f"field {place!r}: no {content_name!r}; the message has {_names(value)}; add it")
    if content is None and not carries:
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
