"""The one chat renderer: messages become text, ids and the mask of what the assistant says.

Templates are Jinja in the Hugging Face format, run in a sandbox with the same settings, filters and globals as
transformers' `apply_chat_template`, so that training, evaluation, the server and an exported model give the same ids.
`{% generation %}` blocks mark the assistant's part; everything of a template outside them is not learned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quatrain.errors import InputError
from quatrain.text.templates import CHATML, TEMPLATES

if TYPE_CHECKING:
    from jinja2.parser import Parser

    from quatrain.text.tokenizer import Tokenizer

__all__ = ["CHATML", "TEMPLATES", "Rendered", "has_marks", "render", "render_text"]

ROLES = ("system", "developer", "user", "assistant", "tool")
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
    "function": "tool",
    "observation": "tool",
}
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Message = Mapping[str, Any]


@dataclass
class Rendered:
    """A conversation in a model's format. `assistant_mask[i]` is True where `ids[i]` is the assistant's to say, the
    end-of-turn token included; `ids` and `assistant_mask` have the same length. `spans` are the assistant's parts of
    `text`, as (start, end) in characters."""

    text: str
    ids: list[int]
    assistant_mask: list[bool]
    spans: list[tuple[int, int]] = field(default_factory=list)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    mask: bool | None = None,
    **variables: Any,
) -> Rendered:
    """Render `messages` ({"role": …, "content": …}) with the tokenizer's chat template.

    `add_generation_prompt` opens the assistant's turn at the end; `tools` are JSON schemas of functions;
    `variables` reach the template. The ids equal those of transformers' `apply_chat_template`; BOS comes from the
    template alone, never twice. `mask=True` demands marks in the template; the default demands them for whole
    conversations and not for prompts. Where they are not demanded and absent, the mask is all False.

    Raises InputError, with all faults at once, for messages that are no conversation, a tokenizer without a chat
    template, a template that refuses the conversation, or one without marks where a mask is demanded.
    """
    template = tokenizer.chat_template
    if template is None:
        raise InputError(
            "the tokenizer has no chat template, so there is no way to write a conversation for its model. Set one: "
            f"tokenizer.chat_template = TEMPLATES[name], with a name of {', '.join(sorted(TEMPLATES))}"
        )
    if (not add_generation_prompt if mask is None else mask) and not has_marks(template):
        raise InputError(
            "the chat template does not mark what the assistant says, so it cannot be told what to learn. Put "
            "{% generation %} before and {% endgeneration %} after the assistant's content and end-of-turn token in "
            f"the template, or take one of {', '.join(sorted(TEMPLATES))}"
        )
    text, spans = render_text(
        template,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        variables={**tokenizer.special_tokens_map, **variables},
    )
    ids, offsets = tokenizer.encode_with_offsets(text)
    return Rendered(text, ids, _mask(offsets, spans), spans)


def render_text(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation and the assistant's spans [start, end) in it, without any tokenizer."""
    conversation = _checked(messages, template)
    tracker = _Tracker()
    with _tracked(tracker):
        try:
            for block in _compiled(template).generate(
                messages=conversation,
                tools=list(tools) if tools is not None else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            ):
                tracker.add(block)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refuses this conversation: {error.message or error}") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(f"the chat template fails on this conversation: {error}") from error
    return "".join(tracker.blocks), tracker.spans


def has_marks(template: str) -> bool:
    """Whether a template marks the assistant's part with `{% generation %}`."""
    return _MARKS.search(template) is not None


def _mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """True for each token that shares a character with a span; both are in order of the text."""
    mask = [False] * len(offsets)
    at = 0
    for start, end in spans:
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        here = at
        while here < len(offsets) and offsets[here][0] < end:
            mask[here] = offsets[here][1] > offsets[here][0]
            here += 1
        # A token may reach over the end of one span into the next.
        at = max(at, here - 1)
    return mask


def _checked(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """The messages as plain dicts without empty keys; raises InputError with every fault found."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError('a conversation is a list of at least one message, each {"role": …, "content": …}')
    problems: list[str] = []
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            problems.append(f'message {number}: {message!r:.60} is no message; write {{"role": …, "content": …}}')
            continue
        kept = {key: value for key, value in message.items() if value is not None}
        _check_role(kept, number, template, problems)
        _check_content(kept, number, problems)
        checked.append(kept)
    if problems:
        raise InputError("the conversation cannot be rendered", problems)
    return checked


def _check_role(message: dict[str, Any], number: int, template: str, problems: list[str]) -> None:
    if "role" not in message:
        problems.append(f'message {number}: no "role"; allowed are {", ".join(ROLES)}')
        return
    role = message["role"]
    if isinstance(role, str) and (role in ROLES or f"'{role}'" in template or f'"{role}"' in template):
        return
    meant = _MEANT.get(role.lower()) if isinstance(role, str) else None
    hint = f"; did you mean {meant}?" if meant else ""
    problems.append(f"message {number}: role {role!r}: allowed are {', '.join(ROLES)}{hint}")


def _check_content(message: dict[str, Any], number: int, problems: list[str]) -> None:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        message["content"] = "".join(part["text"] for part in content)
    elif content is None and not message.get("tool_calls"):
        problems.append(f'message {number}: no "content"; write the text that was said ("" where nothing was)')
    elif content is not None and not isinstance(content, str):
        problems.append(f"message {number}: content is {type(content).__name__}, must be text")


class _Tracker:
    """What has been rendered so far, and where in it the assistant spoke."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self.length = 0

    def add(self, block: str) -> None:
        self.blocks.append(block)
        self.length += len(block)


# Jinja's compiled templates are shared by threads; each rendering has a tracker of its own.
_TRACKER: ContextVar[_Tracker | None] = ContextVar("tracker", default=None)


@contextmanager
def _tracked(tracker: _Tracker) -> Iterator[None]:
    token = _TRACKER.set(tracker)
    try:
        yield
    finally:
        _TRACKER.reset(token)


class _GenerationBlock(jinja2.ext.Extension):
    """The `{% generation %}` tag: renders its body and notes where it stands."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        said = caller()
        if (tracker := _TRACKER.get()) is not None and said:
            tracker.spans.append((tracker.length, tracker.length + len(said)))
        return said


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template is no valid Jinja: {error.message} (its line {error.lineno})") from error
