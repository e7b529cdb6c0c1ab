"""Checks on records that can be read: the order of turns, tag sequences, duplicates.

A fault would train the model on wrong data; a warning may be intended.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from quatrain.data.messages import has_calls, is_empty, is_learned
from quatrain.data.records import (
    AnyRecord,
    Choice,
    Conversation,
    LabelledText,
    Message,
    Preference,
    Question,
    RatedAnswer,
    Row,
    TaggedTokens,
)


@dataclass(frozen=True)
class Finding:
    """A fault or warning: its place ("file:line"), its field, and a text that says what is wrong and how to fix it."""

    place: str
    text: str
    field: str | None = None
    warning: bool = False


def check_record(row: Row, record: AnyRecord) -> Iterator[Finding]:
    """The findings within one record."""
    if isinstance(record, Conversation):
        yield from (Finding(row.place, *fault) for fault in check_turns(record.messages, row.value))
    elif isinstance(record, Preference):
        yield from _check_preference(row, record)
    elif isinstance(record, RatedAnswer):
        yield from _check_answer(row, "completion", record.completion)
    elif isinstance(record, Choice) and len(set(record.choices)) < len(record.choices):
        yield Finding(row.place, "two choices are the same; write different ones", "choices", True)
    elif isinstance(record, Question) and not record.answers and _is_plain(row.value):
        yield Finding(row.place, "field 'answers' is empty; write an answer, or "
                      "\"is_impossible\": true if the text has none", "answers", True)  # fmt: skip


def _is_plain(value: Any) -> bool:
    return isinstance(value, dict) and "is_impossible" not in value


def check_turns(messages: list[Message], value: Any = None) -> Iterator[tuple[str, str]]:
    """Turns out of order and empty answers, as (text, field). `value` is the raw row."""
    row = value if isinstance(value, dict) else {}
    name = "conversations" if "conversations" in row and "messages" not in row else "messages"
    turns = row.get(name)
    # A system message from another column precedes the turns.
    shift = len(messages) - len(turns) if isinstance(turns, list) else 0
    before = ""
    for number, message in enumerate(messages):
        role, place = message["role"], f"{name}[{number - shift}]" if isinstance(turns, list) else "the answer"
        calls = has_calls(message)
        fault = _order(role, before, first=number == 0)
        if fault is not None:
            yield f"field '{place}': {fault}", place
        if role == "assistant" and is_empty(message):
            yield f"field '{place}': the assistant's turn is empty; write its answer or remove the turn", place
        before = "call" if calls else role
    answers = [message for message in messages if message["role"] == "assistant"]
    if answers and not any(map(is_learned, answers)):
        yield f"field '{name}': every turn of the assistant has weight 0, so nothing is learned; remove the row", name
    if answers and messages[-1]["role"] != "assistant":
        place = f"{name}[{len(messages) - 1 - shift}]"
        yield f"field '{place}': the last turn is the {messages[-1]['role']}'s and has no answer; remove it", place


def _order(role: str, before: str, *, first: bool) -> str | None:
    """Why a turn of this role cannot follow one of role `before` ("call" is an assistant turn with a tool call)."""
    if role == "system" and not first:
        return "the system message is not the first; put it first"
    if role == "assistant" and before in ("", "system", "developer"):
        return "the assistant's turn comes first; put the user's turn before it"
    if role == before and role in ("user", "assistant"):
        return f"two turns of the {role} in a row; join them, or write the missing turn"
    if role in ("tool", "function") and before not in ("call", "tool", "function"):
        return "a tool's result without a call; put the assistant's call before it"
    if role == "user" and before == "call":
        return "the user's turn follows a tool call without a result; put the tool's result before it"
    return None


def _check_preference(row: Row, record: Preference) -> Iterator[Finding]:
    if record.chosen == record.rejected:
        yield Finding(row.place, "chosen and rejected are the same; remove the row", "chosen")
    if len(record.chosen) > 1 or len(record.rejected) > 1:
        text = (
            f"chosen and rejected differ before their last answers ({len(record.chosen)} and {len(record.rejected)} "
            "messages): their prompts are not the same; DPO leaves the pair out"
        )
        yield Finding(row.place, text, "chosen", True)
    yield from _check_answer(row, "chosen", record.chosen)
    # A rejected answer may be empty on purpose.
    yield from _check_answer(row, "rejected", record.rejected, may_be_empty=True)


def _check_answer(row: Row, name: str, messages: list[Message], *, may_be_empty: bool = False) -> Iterator[Finding]:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        yield Finding(row.place, f"field {name!r}: it has no turn of the assistant; write its answer", name)
    elif any(map(is_empty, answers)):
        text = f"field {name!r}: the assistant's turn is empty; write its answer or remove the row"
        yield Finding(row.place, text, name, warning=may_be_empty)


class TagChecker:
    """Checks entity tag sequences against their scheme.

    Schemes: IOB2 (every entity begins with B-), IOB1 (B- only between adjacent entities of one type, Ramshaw and
    Marcus 1995), IO (only I-), IOBES and BILOU (also mark single and last words, Ratinov and Roth 2009).
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.count = Counter[str]()
        self.firsts: dict[str, str] = {}
        self.faults: list[Finding] = []
        self.starts_apart = False
        self._fault_count = 0

    def add(self, row: Row, record: TaggedTokens) -> None:
        """Add a sentence."""
        path = row.place.rpartition(":")[0]
        before = "O"
        for number, tag in enumerate(record.tags):
            at = f"{path}:{row.lines[number]}" if row.lines else row.place
            if tag not in self.count:
                self.firsts[tag] = at
            self.count[tag] += 1
            field = None if row.lines else f"tags[{number}]"
            self.starts_apart |= tag[:2] == "B-" and before[2:] != tag[2:]
            fault = _follows(tag, before)
            if fault is not None:
                self._fault_count += 1
                if len(self.faults) < self.limit:
                    where = f"field '{field}': " if field else ""
                    self.faults.append(Finding(at, f"{where}{fault}", field))
            before = tag

    @property
    def scheme(self) -> str | None:
        """The name of the scheme, None if the tags are not entity tags."""
        heads = {tag[:2] for tag in self.count if tag != "O"}
        if not heads or not all(head[1:] == "-" and head[0] in "BIESLU" for head in heads):
            return None
        if heads & {"E-", "S-"}:
            return "IOBES"
        if heads & {"L-", "U-"}:
            return "BILOU"
        if "B-" not in heads:
            return "IO"
        return "IOB2" if self.starts_apart or not self._fault_count else "IOB1"

    def findings(self) -> tuple[list[Finding], int]:
        """The first faults and the count of all."""
        if self.scheme in ("IOB2", "IOBES", "BILOU"):
            return self.faults, self._fault_count
        if self.scheme is None and "O" in self.count:
            return self._odd()
        return [], 0

    def _odd(self) -> tuple[list[Finding], int]:
        """The tags that match no scheme, if most others do."""
        right = {tag for tag in self.count if tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") and len(tag) > 2}
        odd = [tag for tag in self.count if tag not in right and tag != "O"]
        if not right or len(odd) > len(right):
            return [], 0
        odd_tags = [
            Finding(self.firsts[tag], f"the tag {tag!r} ({self.count[tag]:,} times) is not O, B-… or I-…; correct it")
            for tag in odd
        ]
        return [*self.faults, *odd_tags][: self.limit], self._fault_count + len(odd)


def _follows(tag: str, before: str) -> str | None:
    """Why a tag cannot follow `before`, in the schemes that mark beginnings."""
    head, kind = tag[:2], tag[2:]
    inside = before[:2] in ("B-", "I-") and before[2:] == kind
    if head in ("I-", "E-", "L-") and not inside:
        after = f"after {before}" if before != "O" else "where no entity continues"
        return f"{tag} {after}; write {'B' if head == 'I-' else 'S' if head == 'E-' else 'U'}-{kind}"
    return None


class DuplicateFinder:
    """Finds duplicate rows and equal texts with different labels. Stores an 8-byte hash and the place of each."""

    def __init__(self) -> None:
        self.seen: dict[bytes, str] = {}
        self.labels: dict[bytes, tuple[str, Any]] = {}

    def add(self, row: Row, record: AnyRecord) -> Finding | None:
        """The finding for a record that occurred before; None if it is new."""
        key = _digest(record)
        first = self.seen.setdefault(key, row.place)
        if first != row.place:
            return Finding(row.place, f"a duplicate of {first}; remove one", None, True)
        if isinstance(record, LabelledText):
            text = _digest((record.text, record.other))
            before, label = self.labels.setdefault(text, (row.place, record.label))
            if label != record.label:
                text_fault = f"labelled {record.label!r}, but the same text at {before} is {label!r}; choose one"
                return Finding(row.place, text_fault, "label", True)
        return None


def _digest(value: Any) -> bytes:
    content = value
    if not isinstance(value, tuple):
        content = [getattr(value, field.name) for field in fields(value) if field.name != "id"]
    return hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=8).digest()
