"""What data is made of: one typed record for each task, and the faults of rows that are none.

A `Row` is a row as a file has it, with its place. What it means for a task is one of the classes after it:
`Document`, `Conversation`, `Preference`, `LabelledText`, `TaggedTokens`, `Question`, `Choice`, `Pair`, `SQLQuestion`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, overload

from quatrain.core.errors import InputError

Message = dict[str, Any]
"""One turn: {"role": …, "content": …}, and every other field that its file has, such as `tool_calls`."""

_FIELD = re.compile(r"\bfield '([^']+)'")

#: This many problems of a file are shown, the others counted.
SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One row and its place, as "file:line" (for Parquet "file:row 7"); `fault` says why there is no value.

    `lines` are those of its parts, where each has its own: the words of a sentence.
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
        """The record as an objective takes it: {"text"}."""
        return {"text": self.text}


class Messages(list[Message]):
    """The messages of a chat with what its template gets beside them. A slice keeps that.

    `tools` and `documents` are None where the row has none; `variables` are its `chat_template_kwargs`.
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
    """A chat, each message {"role": …, "content": …}; of a set of prompts, it ends with the user's.

    `tools`, `documents` and `variables` (chat_template_kwargs) reach the chat template; `messages` carries them along.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        held = self.messages
        for name in ("tools", "documents", "variables"):
            if not getattr(self, name) and getattr(held, name, None):
                object.__setattr__(self, name, getattr(held, name))
        more = {"tools": self.tools, "documents": self.documents, "variables": self.variables}
        object.__setattr__(self, "messages", Messages(held, **more))  # type: ignore[arg-type]

    def fields(self) -> dict[str, Any]:
        """The record as an objective takes it: {"messages"}."""
        return {"messages": self.messages}


@dataclass(frozen=True)
class Preference:
    """One judgement: after `prompt` the messages `chosen` are better than the messages `rejected`."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]

    def fields(self) -> dict[str, Any]:
        """The record as an objective takes it: {"prompt", "chosen", "rejected"}."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, with the name of its class, or with a number that is to be foretold.

    `number`: the class was written as a whole number, not as text, so that it may be a place among a model's classes.
    """

    text: str
    other: str | None
    label: str | float
    number: bool = field(default=False, compare=False)

    def fields(self) -> dict[str, Any]:
        """The record as an objective takes it: {"text", "text_pair", "label"}."""
        label = int(self.label) if self.number else self.label
        return {"text": self.text, "text_pair": self.other, "label": label}


@dataclass(frozen=True)
class TaggedTokens:
    """The words of a sentence, each with its tag; `numbers`: the tags were written as whole numbers, not as texts."""

    words: list[str]
    tags: list[str]
    numbers: bool = field(default=False, compare=False)

    def fields(self) -> dict[str, Any]:
        """The record as an objective takes it: {"words", "tags"}."""
        return {"words": self.words, "tags": list(map(int, self.tags)) if self.numbers else self.tags}


@dataclass(frozen=True)
class Question:
    """A question about a text, and the places in it that answer: `context[start : start + len(answer)] == answer`.

    No answer at all: the text does not say (SQuAD 2.0, Rajpurkar et al. 2018, arXiv 1806.03822).
    """

    context: str
    question: str
    answers: list[str]
    answer_starts: list[int]
    id: str

    def fields(self) -> dict[str, Any]:
        """The record as SQuAD's: {"id", "question", "context", "answers": {"text", "answer_start"}}."""
        answers = {"text": self.answers, "answer_start": self.answer_starts}
        return {"id": self.id, "question": self.question, "context": self.context, "answers": answers}


@dataclass(frozen=True)
class Choice:
    """A question, or the beginning of a text, with several endings, of which number `label` (from 0) is right."""

    question: str
    choices: list[str]
    label: int

    def fields(self) -> dict[str, Any]:
        """The record as an objective takes it: {"question", "choices", "label"}."""
        return {"question": self.question, "choices": self.choices, "label": self.label}


@dataclass(frozen=True)
class Pair:
    """A text and what it is to become: its translation, its summary. Of several references, the first is `target`."""

    source: str
    target: str
    references: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The record as an objective takes it: {"source", "target"}, and "references" where there are several."""
        more = {"references": list(self.references)} if self.references else {}
        return {"source": self.source, "target": self.target} | more


@dataclass(frozen=True)
class SQLQuestion:
    """A question to a database, the SQL that answers it, and the database's name; "" where there is but one."""

    question: str
    query: str
    database: str

    def fields(self) -> dict[str, Any]:
        """The record as a task takes it: {"question", "query", "database"}."""
        return {"question": self.question, "query": self.query, "database": self.database}


AnyRecord = Document | Conversation | Preference | LabelledText | TaggedTokens | Question | Choice | Pair | SQLQuestion


class Fault(Exception):
    """What is wrong with a row: the sentence that a person reads, its fix behind a semicolon; the field where one is.

    `more` are the row's other faults.
    """

    def __init__(self, text: str, field: str | None = None):
        super().__init__(text)
        found = _FIELD.search(text) if field is None else None
        self.field = found[1] if found else field
        self.more: list[Fault] = []

    @property
    def all(self) -> list[Fault]:
        """This fault and the row's others."""
        return [self, *(each for one in self.more for each in one.all)]


def raise_together(faults: Iterable[Fault]) -> None:
    """Raise the first of some faults with the others in it; nothing where there is none."""
    found = list(faults)
    if found:
        found[0].more += found[1:]
        raise found[0]


class Problems:
    """Faults of a file as they are found; the first are kept, all are counted."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, problem: str) -> None:
        """Note one fault."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(problem)

    def error(self, what: str) -> InputError:
        """The InputError that shows them."""
        more = [f"… and {self.count - len(self.first):,} more"] if self.count > len(self.first) else []
        count = f"{self.count:,} problem{'s' if self.count > 1 else ''}"
        return InputError(f"{what}: {count}", [*self.first, *more])
