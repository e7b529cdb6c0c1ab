"""Tools: Python functions with types that a model may call.

    @tool
    def add(a: int, b: int) -> int:
        \"\"\"Add two numbers.\"\"\"
        return a + b

The JSON schema of the arguments comes from the types, by pydantic; the description from the docstring, and those of
the arguments from its `name: text` lines. Arguments that a model wrote are checked before the function runs, and every
fault is told to the model: what is wrong and what is allowed.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter, create_model

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

Effect = Literal["none", "read", "act"]
"""What a tool does beside its answer: nothing (it computes from its arguments); reads what the user opened to it; or
acts, so that something outside changes or learns of it."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
MAX_RESULT = 20_000
"""The most characters of a result that a model reads."""
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_ARGUMENT = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?\s*:\s+(\S.*)$")


class ToolError(Exception):
    """Why a tool gives no result, in words that the model and the person read."""


@dataclass(frozen=True)
class ToolResult:
    """What a tool gave: `text` is what the model reads. `failed`: the text is the reason for no result. `untrusted`:
    it holds text from outside, which may try to instruct the model."""

    text: str
    failed: bool = False
    untrusted: bool = False


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    `parameters` is the JSON schema of its arguments. `untrusted`: results hold text that the user did not write, such
    as documents, pages and rows. A call may take `seconds`.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[dict[str, Any]], Any]
    """Gives the result of checked arguments."""
    effect: Effect = "none"
    untrusted: bool = False
    seconds: float = 30.0
    check: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda arguments: arguments, repr=False)
    """Gives the arguments in their types; raises ToolError, all faults at once."""

    described_outside: bool = False
    """Whether the name, description and schema come from outside: whoever lists the tool has read such text."""

    ends: bool = False
    """Whether a call ends the run and hands over to the person, with the result as the question."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"tool {format_value(self.name)}: a name has letters, digits, _ and -, at most 64, and begins with a "
                "letter"
            )

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def read(self, arguments: str) -> dict[str, Any]:
        """The arguments that a model wrote as JSON. Raises ToolError that says what is wrong."""
        try:
            given = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ToolError(f"The arguments are not JSON: {error}. Give one object: {self.shown()}") from None
        if not isinstance(given, dict):
            raise ToolError(f"The arguments must be one object: {self.shown()}")
        return self.check(given)

    def run(self, arguments: dict[str, Any]) -> ToolResult:
        """The result of checked arguments; an exception of the function is a failed result, never raised."""
        outcome = _in_time(lambda: self.call(arguments), self.seconds)
        if isinstance(outcome, ToolResult):
            return replace(outcome, text=shortened(outcome.text))
        return outcome_text(outcome, self.untrusted)

    def shown(self) -> str:
        """The arguments and their types, for messages."""
        properties = self.parameters.get("properties", {})
        required = set(self.parameters.get("required", ()))
        parts = [
            f"{name}{'' if name in required else '?'}: {each.get('type') or 'value'}"
            for name, each in properties.items()
        ]
        return "{" + ", ".join(parts) + "}"


def outcome_text(value: Any, untrusted: bool) -> ToolResult:
    """A value as the model reads it: text as it is, everything else as JSON."""
    if isinstance(value, _Failure):
        return ToolResult(shortened(value.text), failed=True, untrusted=untrusted)
    if isinstance(value, str):
        return ToolResult(shortened(value), untrusted=untrusted)
    try:
        text = json.dumps(_ANY.dump_python(value, mode="json", fallback=str), ensure_ascii=False)
    except (ValueError, RecursionError, TypeError) as error:
        return ToolResult(f"The tool gave a result that cannot be shown: {error}", failed=True, untrusted=untrusted)
    return ToolResult(shortened(text), untrusted=untrusted and not _is_numbers(value))


def shortened(text: str, most: int = MAX_RESULT) -> str:
    """A text of at most so many characters; the middle is left out."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _is_numbers(value: Any) -> bool:
    """Whether a value holds numbers alone, which cannot instruct anyone."""
    if isinstance(value, list | tuple):
        return all(map(_is_numbers, value))
    return value is None or isinstance(value, bool | int | float)


@dataclass(frozen=True)
class _Failure:
    text: str


def _in_time(work: Callable[[], Any], seconds: float) -> Any:
    """The result of work, or why there is none. Work that is late is left running in its thread and forgotten."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except ToolError as error:
            results.append(_Failure(f"Error: {error}"))
        except Exception as error:
            results.append(_Failure(f"Error: {type(error).__name__}: {error}"))

    thread = threading.Thread(target=run, name="tool", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else _Failure(f"Error: no result within {seconds:g} s")


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "none",
    untrusted: bool = False,
    seconds: float = 30.0,
) -> Any:
    """The tool of a function with types; also a decorator, with or without options.

    Raises InputError, all problems at once, for a function whose arguments cannot come from JSON.
    """
    if function is None:
        return lambda given: tool(
            given, name=name, description=description, effect=effect, untrusted=untrusted, seconds=seconds
        )
    named = name or function.__name__
    model = _arguments_of(function, named)
    schema = _inlined(model.model_json_schema())

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            checked = model.model_validate(arguments)
        except pydantic.ValidationError as error:
            raise ToolError(_faults(error)) from None
        return {each: getattr(checked, each) for each in type(checked).model_fields}

    said = description if description is not None else _summary(function)
    return Tool(named, said, _plain(schema), lambda arguments: function(**arguments), effect, untrusted, seconds, check)


def _arguments_of(function: Callable[..., Any], name: str) -> type[pydantic.BaseModel]:
    """The pydantic model of a function's arguments."""
    problems, fields = [], dict[str, Any]()
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise InputError(f"tool {name}: its types cannot be read: {error}") from error
    texts = _texts_of(function)
    for each in inspect.signature(function).parameters.values():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            problems.append(f"{each.name}: a tool has named arguments alone, no * and no /")
        elif each.name not in hints:
            problems.append(f"{each.name}: has no type; write {each.name}: str, or another type of JSON")
        else:
            default = ... if each.default is each.empty else each.default
            fields[each.name] = (hints[each.name], Field(default, description=texts.get(each.name)))
    if problems:
        raise InputError(f"tool {name}: cannot be called by a model:", problems)
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
    except (pydantic.PydanticSchemaGenerationError, pydantic.PydanticUserError, NameError) as error:
        raise InputError(f"tool {name}: its types are none of JSON: {str(error).splitlines()[0]}") from error


def _texts_of(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of the arguments."""
    lines = (inspect.getdoc(function) or "").splitlines()
    found = (_ARGUMENT.match(line) for line in lines)
    return {each[1]: each[2].strip() for each in found if each is not None}


def _summary(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def _faults(error: pydantic.ValidationError) -> str:
    """All faults of arguments on one line each."""
    lines = []
    for each in error.errors(include_url=False, include_context=False):
        place = ".".join(map(str, each["loc"])) or "the arguments"
        given = "" if each["type"] == "missing" else f" (given: {format_value(each['input'])})"
        lines.append(f"{place}: {each['msg']}{given}")
    return "Wrong arguments: " + "; ".join(lines)


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which would point elsewhere inside another schema."""
    definitions = schema.pop("$defs", {})

    def resolved(value: Any, within: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [resolved(each, within) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            name = str(value["$ref"]).rpartition("/")[2]
            if name in within or name not in definitions:
                raise InputError(
                    f"tool {schema.get('title')}: the type {name} contains itself, which models cannot use"
                )
            rest = {key: each for key, each in value.items() if key != "$ref"}
            return resolved({**definitions[name], **rest}, (*within, name))
        return {key: resolved(each, within) for key, each in value.items()}

    result: dict[str, Any] = resolved(schema, ())
    return result


def _plain(value: Any, named: bool = False) -> Any:
    """A schema without the titles that pydantic adds, which say nothing to a model."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: each for key, each in value.items() if named or key not in ("title", "additionalProperties") or each}
    return {
        key: _plain(each, key == "properties" and not named) for key, each in kept.items() if named or key != "title"
    }


def check_tools(tools: Sequence[Tool]) -> dict[str, Tool]:
    """The tools by name. Raises InputError for a name that occurs twice."""
    named: dict[str, Tool] = {}
    twice = [each.name for each in tools if each.name in named or named.setdefault(each.name, each) is not each]
    if twice:
        raise InputError(f"Two tools are named {', '.join(sorted(set(twice)))}; give each a name of its own.")
    return named
