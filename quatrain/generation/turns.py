"""What a model writes in its turn: reasoning, content and tool calls, told apart while the text arrives.

Formats of calls: Hermes and Qwen write `<tool_call>{"name": …, "arguments": {…}}</tool_call>`; Llama 3.1 writes
`{"name": …, "parameters": {…}}` as its whole turn; Mistral writes `[TOOL_CALLS] [{"name": …, "arguments": {…}}]`.
Reasoning stands between `<think>` and `</think>` at the beginning of the turn, as DeepSeek-R1 and Qwen 3 write it.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
THINK_START, THINK_END = "<think>", "</think>"
MISTRAL_START = "[TOOL_CALLS]"
LLAMA_TAG = "<|python_tag|>"

Format = Literal["hermes", "llama", "mistral"]

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')
"""The beginning of a call whose arguments can be passed on while they arrive."""


@dataclass
class Delta:
    """A piece of a turn: of its content, its reasoning, or of tool call number `call`.

    The first piece of a call has its id and name, further ones are parts of its arguments as JSON text.
    """

    kind: Literal["content", "reasoning", "call"]
    text: str = ""
    call: int = 0
    call_id: str | None = None
    name: str | None = None


def call_format(template: str | None) -> Format | None:
    """The format of tool calls that a chat template writes; None if it has none."""
    if template is None:
        return None
    if MISTRAL_START in template:
        return "mistral"
    if CALL_START in template:
        return "hermes"
    if LLAMA_TAG in template or ('"parameters"' in template and "tool_calls" in template):
        return "llama"
    return None


def new_call_id() -> str:
    """An id of nine letters and digits, which Mistral's templates require."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(9))


class TurnParser:
    """Splits the text of a turn into deltas. `feed` takes pieces of text, `finish` ends the turn."""

    def __init__(
        self,
        format: Format | None = None,
        *,
        reasons: bool = False,
        is_reasoning: bool = False,
        names: Sequence[str] = (),
    ):
        """`format` is that of tool calls, None to read none; `reasons`: whether reasoning may come first;
        `is_reasoning`: whether the prompt has opened it. `names` are the tools that a bare JSON text may call.
        """
        self.calls = 0
        """How many calls were read."""
        self._format, self._names = format, frozenset(names)
        self._state: Literal["start", "reasoning", "content", "call", "done"] = "start"
        if is_reasoning:
            self._state = "reasoning"
        elif not reasons:
            self._state = "content"
        self._buffer = ""
        self._is_first = True
        """Whether no content was given yet: a bare call must come first."""
        self._call: _Call | None = None
        self._skips_breaks = False
        """Whether line breaks at the beginning of the buffer stand behind a mark, and are not text."""

    def feed(self, text: str) -> list[Delta]:
        """The deltas that a further piece of text completes."""
        self._buffer += text
        return list(self._read(final=False))

    def finish(self) -> list[Delta]:
        """The rest of the turn."""
        deltas = list(self._read(final=True))
        if self._buffer:
            deltas.append(Delta("reasoning" if self._state == "reasoning" else "content", self._buffer))
            self._buffer = ""
        return deltas

    def _read(self, *, final: bool) -> Iterator[Delta]:
        while self._buffer:
            if self._skips_breaks:
                self._buffer = self._buffer.lstrip("\n")
                self._skips_breaks = not self._buffer
                if not self._buffer:
                    return
            before = self._state, len(self._buffer)
            yield from getattr(self, f"_read_{self._state}")(final)
            if (self._state, len(self._buffer)) == before:
                return

    def _read_start(self, final: bool) -> Iterator[Delta]:
        text = self._buffer.lstrip()
        if text.startswith(THINK_START):
            self._buffer, self._state, self._skips_breaks = text[len(THINK_START) :], "reasoning", True
        elif final or not THINK_START.startswith(text):
            self._state = "content"
        yield from ()

    def _read_reasoning(self, final: bool) -> Iterator[Delta]:
        before, mark, after = self._buffer.partition(THINK_END)
        if mark:
            self._buffer, self._state, self._skips_breaks = after, "content", True
            if before.rstrip("\n"):
                yield Delta("reasoning", before.rstrip("\n"))
        else:
            safe = _safe(before, THINK_END, final)
            safe = len(before[:safe].rstrip("\n")) if not final else safe
            self._buffer = before[safe:]
            if safe:
                yield Delta("reasoning", before[:safe])

    def _read_content(self, final: bool) -> Iterator[Delta]:
        mark = {"hermes": CALL_START, "mistral": MISTRAL_START, "llama": LLAMA_TAG}.get(self._format or "")
        if mark is None:
            yield from self._content(len(self._buffer))
            return
        text = self._buffer.lstrip()
        # Marks that are special tokens are not part of the text: the call is then the whole turn.
        may_be_mark = text.startswith(mark) or (mark.startswith(text) and not final)
        if self._is_first and self._format != "hermes" and text[:1] in ("{", "[") and not may_be_mark:
            self._state, self._call = "call", _Call(bare=True)
            return
        if self._is_first and not text and not final:
            return
        place = self._buffer.find(mark)
        if place >= 0:
            yield from self._content(place, strip=True)
            self._buffer = self._buffer[len(mark) :]
            self._state, self._call = "call", _Call(bare=self._format != "hermes")
            return
        safe = _safe(self._buffer, mark, final)
        if not final:
            safe = len(self._buffer[:safe].rstrip("\n"))  # Line breaks before a call are not content.
        yield from self._content(safe)

    def _content(self, length: int, *, strip: bool = False) -> Iterator[Delta]:
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        text = text.rstrip("\n") if strip else text
        if text:
            self._is_first = False
            yield Delta("content", text)

    def _read_call(self, final: bool) -> Iterator[Delta]:
        call = self._call or _Call()
        if call.bare:
            yield from self._read_bare(final)
            return
        inside, mark, after = self._buffer.partition(CALL_END)
        if mark and not _inside_string(inside):
            yield from self._whole(call, inside)
            self._buffer, self._state, self._call, self._skips_breaks = after, "content", None, True
            return
        if call.number is None and (head := _HEAD.match(self._buffer)) is not None:
            yield self._start(call, json.loads(head[1]))
            self._buffer = self._buffer[head.end() :]
            call.scanner = _ValueScanner()
        if call.scanner is not None and not call.scanner.is_done:
            length = call.scanner.scan(self._buffer)
            text, self._buffer = self._buffer[:length], self._buffer[length:]
            if text:
                yield Delta("call", text, call=call.number or 0)
        elif call.scanner is not None:
            # Behind the arguments: up to the closing tag nothing counts.
            place = self._buffer.find(CALL_END)
            if place >= 0:
                self._buffer = self._buffer[place + len(CALL_END) :]
                self._state, self._call, self._skips_breaks = "content", None, True
            elif final:
                self._buffer, self._state = "", "done"
        elif final:
            yield from self._whole(call, self._buffer)
            self._buffer, self._state = "", "done"

    def _read_bare(self, final: bool) -> Iterator[Delta]:
        """A turn that is only JSON: a call, or a list of them; anything else is content after all."""
        if not final:
            return
        text = self._buffer.strip()
        calls = [call for call in map(_call_of, _json_values(text)) if call is not None]
        known = calls and all(not self._names or name in self._names for name, _ in calls)
        self._state = "done"
        if not known:
            text, self._buffer = self._buffer, ""
            yield Delta("content", text)
            return
        self._buffer = ""
        for name, arguments in calls:
            yield from self._complete(_Call(), name, arguments)

    def _whole(self, call: _Call, text: str) -> Iterator[Delta]:
        """What is left of a call whose text is complete."""
        if call.scanner is not None:
            length = 0 if call.scanner.is_done else call.scanner.scan(text)
            if text[:length]:
                yield Delta("call", text[:length], call=call.number or 0)
            return
        values = _json_values(text.strip())
        read = _call_of(values[0]) if len(values) == 1 else None
        if read is None:
            yield Delta("content", f"{CALL_START}{text}{CALL_END}")  # Not a call: shown as it was written.
        else:
            yield from self._complete(call, *read)

    def _complete(self, call: _Call, name: str, arguments: str) -> Iterator[Delta]:
        yield self._start(call, name)
        yield Delta("call", arguments, call=call.number or 0)

    def _start(self, call: _Call, name: str) -> Delta:
        call.number, self.calls = self.calls, self.calls + 1
        return Delta("call", call=call.number, call_id=new_call_id(), name=name)


@dataclass
class _Call:
    """A call that is being read."""

    bare: bool = False
    """Whether it has no closing tag."""
    number: int | None = None
    scanner: _ValueScanner | None = None


class _ValueScanner:
    """Finds the end of a JSON value in pieces of text."""

    def __init__(self) -> None:
        self.is_done = False
        self._depth, self._in_string, self._escaped, self._started = 0, False, False, False

    def scan(self, text: str) -> int:
        """How many characters of a further piece belong to the value."""
        for place, letter in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
                    self.is_done = not self._depth
            elif letter == '"':
                self._in_string = True
            elif letter in "[{":
                self._depth += 1
            elif letter in "]}":
                if not self._depth:
                    self.is_done = True
                    return place
                self._depth -= 1
                self.is_done = not self._depth
            elif not self._depth and self._started and (letter == "," or letter.isspace()):
                self.is_done = True
                return place
            self._started = self._started or not letter.isspace()
            if self.is_done:
                return place + 1
        return len(text)


def _safe(text: str, mark: str, final: bool) -> int:
    """How much of a text cannot be the beginning of a mark."""
    if final:
        return len(text)
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return len(text) - length
    return len(text)


def _inside_string(text: str) -> bool:
    """Whether a piece of JSON ends inside a string."""
    return len(re.findall(r'(?<!\\)(?:\\\\)*"', text)) % 2 == 1


def _json_values(text: str) -> list[Any]:
    """The JSON values of a text, separated by white space, commas or semicolons, lists opened; [] if it is not JSON."""
    decoder, values, place = json.JSONDecoder(), [], 0
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values += value if isinstance(value, list) else [value]
            while place < len(text) and text[place] in " \t\r\n,;":
                place += 1
    except (ValueError, RecursionError):
        return []
    return values


def _call_of(value: Any) -> tuple[str, str] | None:
    """The name and the arguments, as JSON text, of a call; None for anything else."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return value["name"], arguments
    return value["name"], json.dumps(arguments, ensure_ascii=False)


def forced_schema(tools: Sequence[Mapping[str, Any]], name: str | None, arguments: str = "arguments") -> dict[str, Any]:
    """The JSON schema of a call: of the tool `name`, its arguments; else {"name", "arguments"} of any tool.

    `arguments` is the format's key of the arguments.
    """
    functions = [tool["function"] for tool in tools]
    if name is not None:
        return next(_parameters(function) for function in functions if function["name"] == name)
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, arguments: _parameters(function)},
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, without arguments that the function does not have."""
    schema = dict(function.get("parameters") or {"type": "object", "properties": {}})
    return schema if _combines(schema) else _closed(schema)


COMBINED = ("allOf", "if", "dependentSchemas", "$dynamicRef")
"""Keywords under which an object fits several schemas at once, of which none may be closed."""
OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "oneOf", "not", "$ref")
"""Keywords beside `properties` that say which other properties an object may have."""
VALUES = ("enum", "const", "default", "examples")
"""Keywords with values in place of schemas."""
NAMED = ("properties", "$defs", "definitions")
"""Keywords with schemas by name."""


def _combines(value: Any, named: bool = False) -> bool:
    """Whether any object in a schema, or in schemas by name, has to fit several schemas at once."""
    if isinstance(value, Mapping):
        return any(
            (key in COMBINED and not named) or _combines(each, key in NAMED and not named)
            for key, each in value.items()
            if named or key not in VALUES
        )
    return isinstance(value, list) and any(map(_combines, value))


def _closed(value: Any, named: bool = False) -> Any:
    """A schema, or schemas by name, whose objects have their own properties alone, where nothing allows others."""
    if isinstance(value, list):
        return [_closed(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    result = {
        key: each if key in VALUES and not named else _closed(each, key in NAMED and not named)
        for key, each in value.items()
    }
    if not named and isinstance(value.get("properties"), Mapping) and not any(key in value for key in OPEN):
        result["additionalProperties"] = False
    return result


NAME_KEYS: dict[Format, str] = {"hermes": "arguments", "mistral": "arguments", "llama": "parameters"}
"""What a format calls the arguments of a call."""


def turn_grammar(
    tools: Sequence[Mapping[str, Any]], format: Format, token_id: Callable[[str], int | None] = lambda mark: None
) -> str:
    """A grammar, in llguidance's dialect of Lark, of turns that are a text, or end with calls of the tools.

    Text stays free; from the mark that begins a call on, only JSON that fits a tool's schema can follow, so that no
    model can write a broken call, a call of another tool or a wrong argument. `token_id` gives the id of a mark that
    is a special token of the model, whose text a tokenizer does not write.
    """
    schema = forced_schema(tools, None, NAME_KEYS[format])
    call = "%json " + json.dumps(schema | {"x-guidance": {"whitespace_pattern": _SPACE}})

    def mark(text: str) -> str:
        number = token_id(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    free = r"(.|\n)*"
    if format == "llama":
        tag = token_id(LLAMA_TAG)
        head = "" if tag is None else f"<[{tag}]>? "
        return f"start: TEXT | {head}call\nTEXT: /([^{{]{free})?/\ncall: {call}\n"
    if format == "mistral":
        first, between = MISTRAL_START, '"[" WS? call (WS? "," WS? call)* WS? "]"'
    else:
        first, again, last = CALL_START, mark(CALL_START), mark(CALL_END)
        between = f"WS? call WS? {last} (WS? {again} WS? call WS? {last})*"
    number = token_id(first)
    head = f"head[lazy]: TEXT {json.dumps(first)}" if number is None else f"head: TEXT? <[{number}]>"
    body = between if format == "hermes" else f"WS? {between}"
    return f"start: TEXT | head {body}\n{head}\nTEXT: /{free}/\nWS: /{_SPACE}/\ncall: {call}\n"


_SPACE = r"[ \n]{1,4}"
"""White space between the parts of a call."""


class ForcedParser:
    """Reads a turn that was constrained to be a call: of the tool `name`, its arguments; else of any tool."""

    def __init__(self, name: str | None):
        self.calls = 0
        self._name, self._text = name, ""

    def feed(self, text: str) -> list[Delta]:
        """As `TurnParser.feed`."""
        if self._name is None:
            self._text += text
            return []
        start = [] if self.calls else [Delta("call", call_id=new_call_id(), name=self._name)]
        self.calls = 1
        return [*start, Delta("call", text)] if text else start

    def finish(self) -> list[Delta]:
        """As `TurnParser.finish`."""
        call = next((_call_of(value) for value in _json_values(self._text.strip())), None)
        if call is None:
            return [Delta("content", self._text)] if self._text else []
        self.calls = 1
        return [Delta("call", call_id=new_call_id(), name=call[0]), Delta("call", call[1])]


def prepared_messages(messages: Sequence[Mapping[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages as chat templates read them: arguments of calls as objects, the developer as the system."""
    result = []
    for message in messages:
        message = dict(message)
        if message.get("role") == "developer" and "developer" not in template:
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [_with_arguments(call) for call in message["tool_calls"]]
            message.setdefault("content", "")
            message["content"] = message["content"] or ""
        result.append(message)
    return result


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object, if they are the text of one."""
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        try:
            read = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict):
            function["arguments"] = read
    return {**call, "function": function}
