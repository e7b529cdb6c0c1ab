"""The one chat renderer: messages become text, token ids and the mask of assistant tokens.

Templates are Jinja in the Hugging Face format, run with the same settings, filters and globals as transformers'
`apply_chat_template`, so that training, evaluation, the server and an exported model give the same ids. Templates are
untrusted: `quatrain.tokenizers.sandbox` limits their time, memory and output. `{% generation %}` blocks mark what the
assistant generates; tokens outside them are not labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.nodes

from quatrain.core.errors import InputError
from quatrain.core.reading import parse_json
from quatrain.core.wording import format_value, printable, shorten
from quatrain.data.messages import REASONING, check_messages, is_learned, joined, plain
from quatrain.tokenizers.sandbox import MeteredEnvironment, TemplateLimitError, metered
from quatrain.tokenizers.templates import MAX_SOURCE, TEMPLATES

if TYPE_CHECKING:
    from jinja2.parser import Parser

    from quatrain.tokenizers.tokenizer import Tokenizer

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Message = Mapping[str, Any]


@dataclass
class Rendered:
    """A rendered conversation.

    `assistant_mask[i]` is True if the assistant generates `ids[i]`, the end-of-turn token included, in a turn whose
    weight is not 0; it has the length of `ids`. `spans` are these parts of `text`, as (start, end) in characters."""

    text: str
    ids: list[int]
    assistant_mask: list[bool]
    spans: list[tuple[int, int]] = field(default_factory=list)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | str | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    mask: bool | None = None,
    **variables: Any,
) -> Rendered:
    """Render `messages` ({"role": …, "content": …}) with the tokenizer's chat template.

    `add_generation_prompt` opens the assistant's turn at the end. `tools` are JSON schemas of functions (a list or JSON
    text), `documents` texts to answer from, `variables` further inputs of the template; by default these are the ones
    that `Messages` carry. `template` names one of the tokenizer's templates; the default is "tool_use" if there are
    tools and such a template, else "default". The ids equal those of transformers' `apply_chat_template`; BOS comes
    only from the template, never twice. `mask=True` requires `{% generation %}` marks in the template; the default
    requires them unless `add_generation_prompt`. Without marks the mask is all False. An assistant turn of `weight` 0
    is rendered but not in the mask. A template that reads content as text gets the parts of a content list joined.

    Raises InputError, with all faults at once, for invalid messages, a tokenizer without a chat template, a template
    that rejects the conversation or lacks required marks; TemplateLimitError for a template that takes too much time or
    memory.
    """
    tools = tools if tools is not None else getattr(messages, "tools", None)
    documents = documents if documents is not None else getattr(messages, "documents", None)
    schemas = parse_json(tools, "tools", list) if isinstance(tools, str) else tools
    source = tokenizer.template_for(template, tools=tools is not None)
    if (not add_generation_prompt if mask is None else mask) and not has_marks(source):
        raise InputError(
            "the chat template does not mark the assistant's text, so the labels are unknown. Put "
            "{% generation %} before and {% endgeneration %} after the assistant's content and end-of-turn token in "
            f"the template, or use one of {', '.join(sorted(TEMPLATES))}"
        )
    text, spans = render_text(
        source,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=schemas,
        documents=documents,
        variables={**tokenizer.special_tokens_map, **getattr(messages, "variables", {}), **variables},
    )
    ids, offsets = tokenizer.encode_with_offsets(text)
    return Rendered(text, ids, _mask(offsets, spans), spans)


def check_template(tokenizer: Tokenizer) -> None:
    """Raises InputError if there is no chat template, or it cannot render a conversation that starts with the user."""
    turn, variables = {"role": "user", "content": "Hello"}, tokenizer.special_tokens_map
    render_text(tokenizer.template_for(), [turn], add_generation_prompt=True, variables=variables)


def render_text(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation and the spans [start, end) of the assistant in it, without a tokenizer."""
    conversation = check_messages(messages, template)
    if reserved := sorted({"messages", "tools", "documents", "add_generation_prompt"} & set(variables or {})):
        raise InputError(
            f"variables of a chat template cannot be named {', '.join(reserved)}; these are separate arguments"
        )
    inputs = {
        "tools": _list_of_objects(tools, "tools"),
        "documents": _list_of_objects(documents, "documents"),
        "add_generation_prompt": add_generation_prompt,
        **plain(dict(variables or {}), "variables"),
    }
    in_parts = any(isinstance(message.get("content"), list) for message in conversation)
    if not in_parts:
        return _rendered(template, conversation, inputs)
    texts = [joined(message) for message in conversation]
    try:
        text, spans = _rendered(template, conversation, inputs)
    except TemplateLimitError:
        raise
    except InputError:
        if None in texts:
            raise
        return _rendered(template, texts, inputs)  # type: ignore[arg-type]
    # A template that reads content as text prints the list in Python syntax, which no model was trained on.
    lists = [str(message["content"]) for message in conversation if isinstance(message.get("content"), list)]
    if any(content in text for content in lists if content != "[]"):
        if None in texts:
            raise InputError(
                "the chat template reads content as text, but the conversation has parts that are not text: remove "
                "these, or use a template that reads the parts of a message"
            )
        return _rendered(template, texts, inputs)  # type: ignore[arg-type]
    return text, spans


def _list_of_objects(values: Any, name: str) -> list[dict[str, Any]] | None:
    if values is None:
        return None
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        raise InputError(f"{name} must be a list of objects, not {format_value(values)}")
    wrong = [
        f"{name}[{number}] is {format_value(value)}, must be an object"
        for number, value in enumerate(values)
        if not isinstance(value, Mapping)
    ]
    if wrong:
        raise InputError(f"{name} cannot be rendered", wrong)
    return plain(list(values), name)


def _rendered(
    template: str, conversation: list[dict[str, Any]], inputs: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Runs a template once."""
    tracker = _Tracker(conversation)
    size = sum(len(str(value)) for value in (*conversation, inputs))
    token = _TRACKER.set(tracker)
    try:
        with metered(size, len(conversation)) as meter:
            try:
                for block in _compiled(template).generate(messages=tracker.messages, **inputs):
                    tracker.add(block)
                    if tracker.length > meter.longest:
                        raise meter.fail(f"an output of more than {meter.longest:,} characters")
            except InputError:
                raise
            except jinja2.TemplateError as error:
                raise InputError(
                    f"the chat template refuses this conversation: {shorten(printable(str(error.message)), 400)}"
                ) from error
            except RecursionError as error:
                raise meter.fail("macros, blocks or values nested too deeply") from error
            except MemoryError as error:
                raise meter.fail("more memory than there is") from error
            except Exception as error:  # an untrusted template may raise anything
                raise InputError(
                    f"the chat template fails on this conversation: {shorten(printable(str(error)), 400)}"
                ) from error
            if meter.failed is not None:
                raise meter.failed
    finally:
        _TRACKER.reset(token)
    return "".join(tracker.blocks), tracker.learned()


def has_marks(template: str) -> bool:
    """Whether a template has `{% generation %}` marks."""
    return _MARKS.search(template) is not None


def _mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """True for each token that overlaps a span; both are in the order of the text."""
    mask = [False] * len(offsets)
    at = 0
    for start, end in spans:
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        here = at
        while here < len(offsets) and offsets[here][0] < end:
            mask[here] = offsets[here][1] > offsets[here][0]
            here += 1
        # A token may overlap the end of one span and the start of the next.
        at = max(at, here - 1)
    return mask


class _Turn(dict[str, Any]):
    """A message that tells its tracker when the template reads its content."""

    tracker: _Tracker
    number: int

    def __getitem__(self, key: str) -> Any:
        if key in _CONTENT_FIELDS:
            self.tracker.read.append(self.number)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        if key in _CONTENT_FIELDS:
            self.tracker.read.append(self.number)
        return super().get(key, default)


_CONTENT_FIELDS = frozenset(("content", "tool_calls", "function_call", "refusal", *REASONING))


class _Tracker:
    """Records the rendered text, the assistant's spans in it, and the turn of each span.

    The turns of spans matter only if a turn has the weight 0.
    """

    def __init__(self, conversation: list[dict[str, Any]]) -> None:
        self.blocks: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self.owners: list[int | None] = []
        self.length = 0
        self.read: list[int] = []
        self.answers = [number for number, turn in enumerate(conversation) if turn.get("role") == "assistant"]
        self.unlearned = {number for number in self.answers if not is_learned(conversation[number])}
        self.messages: list[dict[str, Any]] = conversation
        if self.unlearned:
            self.messages = [self._turn(number, message) for number, message in enumerate(conversation)]

    def _turn(self, number: int, message: dict[str, Any]) -> _Turn:
        turn = _Turn(message)
        turn.tracker, turn.number = self, number
        return turn

    def add(self, block: str) -> None:
        """Append a part of the text outside `{% generation %}`, or one whole block."""
        self.blocks.append(block)
        self.length += len(block)

    def generated(self, caller: Callable[[], str]) -> str:
        """Render a `{% generation %}` block and record its span and its turn."""
        before = [number for number in self.read if number in self.answers][-1:]
        self.read.clear()
        text = caller()
        inside = {number for number in self.read if number in self.answers}
        if text:
            self.spans.append((self.length, self.length + len(text)))
            owner = inside or set(before)
            self.owners.append(owner.pop() if len(owner) == 1 else None)
        self.read[:0] = before
        return text

    def learned(self) -> list[tuple[int, int]]:
        """The spans of turns with nonzero weight. Raises InputError if the turns of spans are unknown."""
        if not self.unlearned:
            return self.spans
        owners: list[int | None] = self.owners
        if None in owners and len(owners) == len(self.answers):
            owners = list(self.answers)
        if None in owners:
            raise InputError(
                "a turn has weight 0, but the chat template marks several turns of the assistant as one, so that it "
                "cannot be excluded from the labels; use another template, or remove the weight"
            )
        return [span for span, owner in zip(self.spans, owners, strict=True) if owner not in self.unlearned]


# Compiled templates are shared between threads; each rendering has its own tracker.
_TRACKER: ContextVar[_Tracker | None] = ContextVar("tracker", default=None)


class _GenerationBlock(jinja2.ext.Extension):
    """The `{% generation %}` tag: renders its body and records its span."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        tracker = _TRACKER.get()
        return caller() if tracker is None else tracker.generated(caller)


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
    return datetime.now().strftime(format[:1000])


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > MAX_SOURCE:
        raise InputError(f"the chat template has {len(template):,} characters; at most {MAX_SOURCE:,} are allowed")
    environment = MeteredEnvironment(
        [_GenerationBlock],
        filters={"tojson": _tojson},
        functions={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        where = f"(its line {error.lineno})"
        raise InputError(
            f"the chat template is not valid Jinja: {shorten(printable(str(error.message)), 400)} {where}"
        ) from error
    except (RecursionError, MemoryError) as error:
        raise InputError("the chat template is nested too deeply") from error
    except (SyntaxError, ValueError, OverflowError) as error:
        raise InputError(f"the chat template cannot be compiled: {shorten(printable(str(error)), 400)}") from error
