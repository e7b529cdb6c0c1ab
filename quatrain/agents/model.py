"""The model of an agent: our engine, or any OpenAI-compatible endpoint, asked for one turn at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from quatrain.core.errors import InputError
from quatrain.generation.endpoint import Endpoint, open_model
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.text import special_token_id
from quatrain.generation.turns import (
    THINK_START,
    Delta,
    Format,
    TurnParser,
    call_format,
    prepared_messages,
    turn_grammar,
)

Message = dict[str, Any]
MAX_NEW_TOKENS = 512
"""The most tokens of a turn where neither a setting nor the model's own says it."""


@dataclass(frozen=True)
class Call:
    """A call that a model wrote: `arguments` are JSON text, which nothing has checked yet."""

    id: str
    name: str
    arguments: str

    def message(self) -> dict[str, Any]:
        """The call in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Turn:
    """What a model wrote in its turn. `cut`: the limit of tokens ended it. `seconds` are those that it took."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cut: bool = False


@dataclass(frozen=True)
class Form:
    """What the form of a turn may be: with calls of `tools`, or a text of the grammar, up to one of `stop`."""

    tools: Sequence[Mapping[str, Any]] = ()
    grammar: str | None = None
    stop: tuple[str, ...] = ()


class ChatModel(Protocol):
    """What an agent asks for turns."""

    name: str
    calls_tools: bool
    """Whether the model reads tools and writes calls in a form of its own."""
    context: int | None
    """The most tokens of a prompt and its turn; None where that is unknown."""

    def turn(self, messages: Sequence[Message], form: Form) -> Turn:
        """The next turn of a conversation."""
        ...

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> int | None:
        """The tokens of a conversation as the model reads it; None where that is unknown."""
        ...


class EngineModel:
    """A model on our engine. Where llguidance is installed, calls are constrained to the tools' schemas."""

    def __init__(self, engine: Engine, params: SamplingParams | None = None, *, name: str = "model"):
        self.engine, self.name = engine, name
        self.params = params or engine.recommended
        tokenizer: Any = engine.tokenizer
        self.template: str = getattr(tokenizer, "chat_template", None) or ""
        if not self.template:
            raise InputError(
                "An agent needs a model with a chat template; this one has none. Fine-tune it on chats: quatrain run "
                "tool-sft"
            )
        self.format = call_format(self.template)
        self.calls_tools = self.format is not None
        self.context: int | None = engine.model.config.context_length
        self.constrains = _has_llguidance()

    def turn(self, messages: Sequence[Message], form: Form) -> Turn:
        started = time.perf_counter()
        ids = self._ids(messages, form.tools)
        (completion,) = self.engine.generate([ids], self._params(form))
        turn = turn_of(
            completion.text,
            self.format if form.tools else None,
            [tool["function"]["name"] for tool in form.tools],
            reasons=THINK_START in self.template and form.grammar is None,
        )
        return replace(
            turn,
            prompt_tokens=len(ids),
            completion_tokens=len(completion.ids),
            seconds=time.perf_counter() - started,
            cut=completion.finish_reason == "length",
        )

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> int | None:
        return len(self._ids(messages, tools))

    def _ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.engine.render(prepared_messages(messages, self.template), list(tools) or None)

    def _params(self, form: Form) -> SamplingParams:
        grammar = form.grammar
        if form.tools and self.format is not None:
            tokenizer: Any = self.engine.tokenizer
            grammar = turn_grammar(form.tools, self.format, lambda mark: special_token_id(tokenizer, mark))
        grammar = grammar if self.constrains else None
        return replace(self.params, stop=(*self.params.stop, *form.stop), grammar=grammar or self.params.grammar)


@dataclass
class EndpointModel:
    """A model behind an OpenAI-compatible address. The endpoint constrains the calls, or nobody does."""

    endpoint: Endpoint
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=MAX_NEW_TOKENS))
    calls_tools: bool = True

    def __post_init__(self) -> None:
        self.name = f"{self.endpoint.url}#{self.endpoint.model_name}"
        self.context = self.endpoint.context_length

    def turn(self, messages: Sequence[Message], form: Form) -> Turn:
        started = time.perf_counter()
        params = replace(self.params, stop=(*self.params.stop, *form.stop))
        answer = self.endpoint.message(messages, params, tools=form.tools)
        calls = [
            Call(str(each.get("id") or f"call_{number}"), *_named(each))
            for number, each in enumerate(answer.message.get("tool_calls") or ())
        ]
        return Turn(
            str(answer.message.get("content") or ""),
            str(answer.message.get("reasoning_content") or ""),
            tuple(calls),
            answer.prompt_tokens,
            answer.completion_tokens,
            time.perf_counter() - started,
            answer.finish_reason == "length",
        )

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> int | None:
        return None


def open_chat_model(model: str | Path, params: SamplingParams | None = None, **options: Any) -> ChatModel:
    """The model of a folder, hub id, run or address. `options` as for `Engine.load`; raises InputError."""
    opened = open_model(model, **options)
    if isinstance(opened, Endpoint):
        return EndpointModel(opened) if params is None else EndpointModel(opened, params)
    own = opened.recommended
    if params is None and own.max_new_tokens == SamplingParams().max_new_tokens:
        params = replace(own, max_new_tokens=MAX_NEW_TOKENS)
    return EngineModel(opened, params, name=str(model))


def _named(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return str(function.get("name") or ""), written


def turn_of(text: str, format: Format | None, names: Sequence[str], *, reasons: bool = False) -> Turn:
    """The turn that a model wrote as text, with its calls in the format and of the named tools."""
    parser = TurnParser(format, reasons=reasons, names=names)
    return _read(parser.feed(text) + parser.finish())


def _read(deltas: Sequence[Delta]) -> Turn:
    """The turn of a parser's deltas."""
    texts = {"content": "", "reasoning": ""}
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.kind == "call":
            if delta.name is not None:
                calls[delta.call] = [f"call_{delta.call}", delta.name, ""]
            calls[delta.call][2] += delta.text
        else:
            texts[delta.kind] += delta.text
    return Turn(texts["content"].strip(), texts["reasoning"].strip(), tuple(Call(*each) for each in calls.values()))


def _has_llguidance() -> bool:
    from importlib.util import find_spec

    return find_spec("llguidance") is not None
