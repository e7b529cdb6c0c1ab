"""The types of data: raw rows, the typed record of each task, and the faults of rows that cannot be converted.

A `Row` is one row as its file has it. `quatrain.data.convert` turns it into a typed record: `Document`, `Conversation`,
`Preference`, `RatedAnswer`, `LabelledText`, `TaggedTokens`, `Question`, `Choice`, `Pair` or `SQLQuestion`. Each record
has `fields()`, the dictionary that objectives and tasks take, and `parts()`, its texts by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex, overload

from quatrain.core.errors import InputError
from quatrain.data.messages import content_text

Message = dict[str, Any]
"""One turn of a chat: {"role": …, "content": …} and any further fields of its file, such as `tool_calls`."""

_FIELD = re.compile(r"\bfield '([^']+)'")

MAX_SHOWN = 20
"""Problems of a file that an error message lists; the others are only counted."""


@dataclass(frozen=True)
class Row:
    """One row as its file has it.

    `place` is "file:line", for Parquet "file:row 7". `fault` says why there is no `value`. `lines` are the line numbers
    of its parts if they span several lines, such as the words of a CoNLL sentence.
    """

    place: str
    value: Any = None
    fault: str | None = None
    lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class Document:
    """A document."""

    text: str

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"text"}."""
        return {"text": self.text}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "text"."""
        yield "text", self.text


class Messages(list[Message]):
    """The messages of a chat with the other inputs of its chat template. Slices and sums keep these.

    `tools` and `documents` are None if the row has none; `variables` are its `chat_template_kwargs`.
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        *,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ):
        super().__init__(messages)
        self.tools, self.documents, self.variables = tools, documents, dict(variables or {})

    def of(self, messages: Iterable[Message]) -> Messages:
        """Other messages with the same tools, documents and variables."""
        return Messages(messages, tools=self.tools, documents=self.documents, variables=self.variables)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Message: ...

    @overload
    def __getitem__(self, place: slice) -> Messages: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Message | Messages:
        if isinstance(place, slice):
            return self.of(super().__getitem__(place))
        return super().__getitem__(place)

    def __add__(self, others: Iterable[Message]) -> Messages:  # type: ignore[override]
        return self.of([*self, *others])


@dataclass(frozen=True)
class Conversation:
    """A chat: a list of messages {"role": …, "content": …}. A prompt is a chat that ends with a user's message.

    `tools`, `documents` and `variables` (chat_template_kwargs) are inputs of the chat template, carried by `messages`.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        messages = self.messages
        for name in ("tools", "documents", "variables"):
            if not getattr(self, name) and getattr(messages, name, None):
                object.__setattr__(self, name, getattr(messages, name))
        inputs = {"tools": self.tools, "documents": self.documents, "variables": self.variables}
        object.__setattr__(self, "messages", Messages(messages, **inputs))  # type: ignore[arg-type]

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"messages"}."""
        return {"messages": self.messages}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: the whole "conversation" and the messages of the "assistant"."""
        yield "conversation", "\n".join(content_text(message) for message in self.messages)
        answers = [content_text(message) for message in self.messages if message["role"] == "assistant"]
        if answers:
            yield "assistant", "\n".join(answers)


@dataclass(frozen=True)
class Preference:
    """A preference pair: after `prompt`, the messages `chosen` are better than the messages `rejected`.

    `margin` is by how much, such as a difference of scores; None if the data do not have it.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"prompt", "chosen", "rejected"}, and "margin" if there is one."""
        margin = {} if self.margin is None else {"margin": self.margin}
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected} | margin

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "prompt", "chosen", "rejected"."""
        yield from (("prompt", _text(self.prompt)), ("chosen", _text(self.chosen)), ("rejected", _text(self.rejected)))


@dataclass(frozen=True)
class RatedAnswer:
    """An answer with a thumb: after `prompt`, the messages `completion` are good (`label` is True) or not."""

    prompt: list[Message]
    completion: list[Message]
    label: bool

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"prompt", "completion", "label"}."""
        return {"prompt": self.prompt, "completion": self.completion, "label": self.label}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "prompt" and "completion"."""
        yield from (("prompt", _text(self.prompt)), ("completion", _text(self.completion)))


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
"""What separates sentences and lines."""


def _text(messages: Iterable[Message]) -> str:
    return "\n".join(content_text(message) for message in messages)


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, with its class (a name) or its score (a float).

    `number` is True if the file has the class as an integer, which can be an index into a model's classes.
    """

    text: str
    other: str | None
    label: str | float
    number: bool = field(default=False, compare=False)

    def pieces(self, words: int) -> list[LabelledText]:
        """The text in pieces of at most `words` words, each with its class or score; pairs of texts stay whole.

        A piece ends at the last end of a line or sentence before the limit, else at the limit.
        """
        if self.other is not None:
            return [self]
        found: list[str] = []
        piece: list[str] = []
        for sentence in _SENTENCE_END.split(self.text):
            parts = sentence.split()
            if len(piece) + len(parts) > words:
                found.append(" ".join(piece))
                piece = []
            starts = range(0, len(parts), words)
            found += [" ".join(parts[start : start + words]) for start in starts[:-1]]
            piece += parts[starts[-1] :] if starts else []
        found.append(" ".join(piece))
        return [replace(self, text=text) for text in found if text] or [self]

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"text", "text_pair", "label"}."""
        label = int(self.label) if self.number else self.label
        return {"text": self.text, "text_pair": self.other, "label": label}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "text" and, of a pair, "other"."""
        yield "text", self.text
        if self.other is not None:
            yield "other", self.other


@dataclass(frozen=True)
class TaggedTokens:
    """The words of a sentence, each with its tag. `numbers` is True if the file has the tags as integers."""

    words: list[str]
    tags: list[str]
    numbers: bool = field(default=False, compare=False)

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"words", "tags"}."""
        return {"words": self.words, "tags": list(map(int, self.tags)) if self.numbers else self.tags}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "sentence", the words joined by spaces."""
        yield "sentence", " ".join(self.words)


@dataclass(frozen=True)
class Question:
    """An extractive question: `context[start : start + len(answer)] == answer` for each answer and its start.

    Without answers, the context does not answer the question (SQuAD 2.0, Rajpurkar et al. 2018, arXiv 1806.03822).
    """

    context: str
    question: str
    answers: list[str]
    answer_starts: list[int]
    id: str

    def fields(self) -> dict[str, Any]:
        """The fields in SQuAD's form: {"id", "question", "context", "answers": {"text", "answer_start"}}."""
        answers = {"text": self.answers, "answer_start": self.answer_starts}
        return {"id": self.id, "question": self.question, "context": self.context, "answers": answers}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "context", "question" and the first "answer"."""
        yield "context", self.context
        yield "question", self.question
        yield from (("answer", answer) for answer in self.answers[:1])


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question, or the beginning of a text with several endings; `choices[label]` is right."""

    question: str
    choices: list[str]
    label: int

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"question", "choices", "label"}."""
        return {"question": self.question, "choices": self.choices, "label": self.label}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "question" and "longest choice"."""
        yield "question", self.question
        yield "longest choice", max(self.choices, key=len)


@dataclass(frozen=True)
class Pair:
    """A source text and its target, such as a translation or a summary. `target` is the first of `references`."""

    source: str
    target: str
    references: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The fields that an objective takes: {"source", "target"}, and "references" if there are several."""
        references = {"references": list(self.references)} if self.references else {}
        return {"source": self.source, "target": self.target} | references

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "source" and "target"."""
        yield "source", self.source
        yield "target", self.target


@dataclass(frozen=True)
class SQLQuestion:
    """A question about a database, the SQL query that answers it, and the database's name ("" if there is only one)."""

    question: str
    query: str
    database: str

    def fields(self) -> dict[str, Any]:
        """The fields that a task takes: {"question", "query", "database"}."""
        return {"question": self.question, "query": self.query, "database": self.database}

    def parts(self) -> Iterator[tuple[str, str]]:
        """The texts by name: "question" and "query"."""
        yield "question", self.question
        yield "query", self.query


AnyRecord = (
    Document
    | Conversation
    | Preference
    | RatedAnswer
    | LabelledText
    | TaggedTokens
    | Question
    | Choice
    | Pair
    | SQLQuestion
)


class Fault(Exception):
    """Why a row cannot be converted: a sentence for the user with the fix after a semicolon, and the field if known.

    `more` are the other faults of the same row.
    """

    def __init__(self, text: str, field: str | None = None):
        super().__init__(text)
        match = _FIELD.search(text) if field is None else None
        self.field = match[1] if match else field
        self.more: list[Fault] = []

    @property
    def all(self) -> list[Fault]:
        """This fault and the other faults of the row."""
        return [self, *(nested for fault in self.more for nested in fault.all)]


def field_names(fields: Mapping[str, Any]) -> str:
    """The names of a row's first fields, for messages."""
    return ", ".join(map(repr, list(fields)[:12])) or "no fields"


def raise_together(faults: Iterable[Fault]) -> None:
    """Raise the first fault with the others attached; do nothing if there is none."""
    faults = list(faults)
    if faults:
        faults[0].more += faults[1:]
        raise faults[0]


class Problems:
    """Collects the faults of a file: stores the first MAX_SHOWN and counts all."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, problem: str) -> None:
        """Add one fault."""
        self.count += 1
        if len(self.first) < MAX_SHOWN:
            self.first.append(problem)

    def error(self, what: str) -> InputError:
        """The InputError that lists them."""
        more = [f"… and {self.count - len(self.first):,} more"] if self.count > len(self.first) else []
        count = f"{self.count:,} problem{'s' if self.count > 1 else ''}"
        return InputError(f"{what}: {count}", [*self.first, *more])
