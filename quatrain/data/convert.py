"""Converts rows to typed records. Each role is read from its column; every fault names its field and a fix.

The rows of chats are read in `quatrain.data.chat_rows`, those of preferences in `quatrain.data.preference_rows`. All
faults of a row are raised at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quatrain.core.reading import lone_surrogate
from quatrain.core.wording import format_value, type_name
from quatrain.data.chat_rows import TEMPLATE_INPUTS, parsed, to_conversations, to_prompts
from quatrain.data.formats import Layout, as_number
from quatrain.data.preference_rows import to_preferences, to_ratings
from quatrain.data.records import (
    AnyRecord,
    Choice,
    Conversation,
    Document,
    Fault,
    LabelledText,
    Pair,
    Question,
    Row,
    SQLQuestion,
    TaggedTokens,
    field_names,
    raise_together,
)


def convert(row: Row, layout: Layout) -> list[AnyRecord]:
    """The typed records of a row: usually one; none for an empty text or a tie between two answers.

    Raises Fault with all faults of the row.
    """
    if row.fault is not None:
        raise Fault(row.fault)
    value = row.value
    if layout.format in ("text", "lines") and isinstance(value, str):
        return [Document(value)] if value.strip() else []
    if not isinstance(value, Mapping):
        raise Fault(f"the row is {type_name(value)}, must be an object with fields; write {{…}}")
    reader = RowReader(value, layout, row.place)
    records = _CONVERTERS[layout.format](reader)
    raise_together(reader.faults)
    return records


class RowReader:
    """Reads the values of one row by role and collects its faults in `faults`."""

    def __init__(self, value: Mapping[str, Any], layout: Layout, place: str = ""):
        self.value, self.layout, self.place = value, layout, place
        self.faults: list[Fault] = []

    def column(self, part: str) -> str:
        """The column of a role."""
        return self.layout.parts.get(part, part)

    def fault(self, part: str, text: str) -> None:
        """Add a fault of a role's column."""
        name = self.column(part)
        self.faults.append(Fault(f"field {name!r}: {text}", name))

    def raw(self, part: str) -> Any:
        """The value in a role's column; None, with a fault, if it is missing or null."""
        name = self.column(part)
        value, exists = _at(self.value, name)
        if not exists:
            self.faults.append(Fault(f"no field {name!r}; the row has {field_names(self.value)}; add it", name))
        elif value is None:
            self.fault(part, "is null; write a value or remove the row")
        return value

    def has(self, part: str) -> bool:
        """Whether a role's column has a value."""
        return _at(self.value, self.column(part))[0] is not None

    def text(self, part: str, *, may_be_empty: bool = False) -> str:
        """The text of a role; "", with a fault, if it is missing."""
        value = self.raw(part)
        if value is None:
            return ""
        return self.checked(part, value, may_be_empty=may_be_empty)

    def checked(self, part: str, value: Any, *, at: str = "", may_be_empty: bool = False) -> str:
        """A value as text, with a fault if it is not one; `at` is its position within the column, for messages."""
        name = self.column(part) + at
        if not isinstance(value, str):
            self.faults.append(Fault(f"field {name!r} is {type_name(value)}, must be text; put it in quotes", name))
            return ""
        if not value.strip() and not may_be_empty:
            self.faults.append(Fault(f"field {name!r} is empty; write a text or remove the row", name))
        if (fault := lone_surrogate(value)) is not None:
            self.faults.append(Fault(f"field {name!r}: {fault}", name))
        return value

    def items(self, part: str) -> list[Any]:
        """The list of a role, which a table may hold as JSON text; [], with a fault, if it is missing or no list."""
        value = self.raw(part)
        if isinstance(value, str) and value[:1] == "[":
            try:
                value = parsed(value, part)
            except Fault as error:
                self.fault(part, str(error).partition(": ")[2] + "; write a list")
                return []
        if value is not None and not isinstance(value, list):
            self.fault(part, f"is {type_name(value)}, must be a list; write […]")
            return []
        return value or []


Converter = Callable[[RowReader], list[AnyRecord]]
_CONVERTERS: dict[str, Converter] = {}


def _converts(*formats: str) -> Callable[[Converter], Converter]:
    """Register a function as the converter of data formats of `quatrain.data.formats.FORMATS`."""

    def register(converter: Converter) -> Converter:
        _CONVERTERS.update(dict.fromkeys(formats, converter))
        return converter

    return register


def _at(value: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    """The value of a column, and whether the column exists; "a.b" is field b of the object a."""
    if name in value:
        return value[name], True
    outer, dot, inner = name.partition(".")
    nested = value.get(outer) if dot else None
    return _at(nested, inner) if isinstance(nested, Mapping) else (None, False)


@_converts("text", "lines")
def _text(row: RowReader) -> list[AnyRecord]:
    value, exists = _at(row.value, row.column("text"))
    if exists and value is None:
        return []
    text = row.text("text", may_be_empty=True)
    return [Document(text)] if text.strip() else []


@_converts("labelled")
def _labelled(row: RowReader) -> list[AnyRecord]:
    text = row.text("text")
    other = row.text("other") if "other" in row.layout.parts else None
    return [LabelledText(text, other, _label(row), _is_number(row))]


def _is_number(row: RowReader) -> bool:
    """Whether the class is an integer: 1, or 1.0 as data frames write it."""
    value = _at(row.value, row.column("label"))[0]
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and not row.layout.scores and not row.faults


def _label(row: RowReader) -> str | float:
    """The name of the class, or a float if labels are scores."""
    value = row.raw("label")
    if value is None:
        return ""
    if row.layout.scores:
        number = as_number(value)
        if number is None:
            row.fault("label", f"{format_value(value)} is not a number, as the other scores are; write a number")
        return number or 0.0
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        if value < 0:
            row.fault("label", f"{value} means no label; remove the row")
        return str(value)
    if not isinstance(value, str):
        row.fault("label", f"is {type_name(value)}, must be text or a whole number")
        return ""
    if not value.strip():
        row.fault("label", "is empty; write the class")
        return ""
    return row.checked("label", value).strip()


@_converts("tagged")
def _tagged(row: RowReader) -> list[AnyRecord]:
    words, tags = row.items("words"), row.items("tags")
    if not row.faults and not words:
        row.fault("words", "is an empty list; remove the row")
    if not row.faults and len(words) != len(tags):
        row.fault("tags", f"{len(tags)} tags for {len(words)} words; each word needs one")
    for number, word in enumerate(words):
        row.checked("words", word, at=f"[{number}]")
    names: list[str] = []
    for number, tag in enumerate(tags):
        whole = isinstance(tag, int) and not isinstance(tag, bool)
        names.append(str(tag) if whole else row.checked("tags", tag, at=f"[{number}]"))
    numbers = bool(tags) and all(isinstance(tag, int) and not isinstance(tag, bool) for tag in tags)
    return [TaggedTokens(list(words), names, numbers)]


@_converts("qa")
def _question(row: RowReader) -> list[AnyRecord]:
    """A question of a nested SQuAD file or of a flat row. The start of an answer without one is searched for."""
    context, question = row.text("context"), row.text("question")
    answers, starts = _answers(row, context)
    name = row.value.get(row.layout.parts.get("id", "id"))
    return [Question(context, question, answers, starts, str(name) if name is not None else row.place)]


def _answers(row: RowReader, context: str) -> tuple[list[str], list[int]]:
    value = row.raw("answers")
    impossible = row.value.get("is_impossible") is True
    texts: list[Any] = []
    starts: list[Any] = []
    if isinstance(value, str):
        texts = [value] if value.strip() else []
        start = row.value.get(row.layout.parts.get("starts", "answer_start"))
        starts = [int(start) if isinstance(start, str) and start.strip().isdigit() else start]
    elif isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start", [])  # type: ignore[assignment]
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
        if not isinstance(texts, list) or not isinstance(starts, list) or len(starts) not in (0, len(texts)):
            row.fault("answers", "must have the lists text and answer_start, of the same length")
            return [], []
    elif isinstance(value, list):
        for number, answer in enumerate(value):
            if isinstance(answer, Mapping):
                texts.append(answer.get("text"))
                starts.append(answer.get("answer_start"))
            elif isinstance(answer, str):
                texts.append(answer)
                starts.append(None)
            else:
                row.fault("answers", f"[{number}] is {type_name(answer)}, must be {{text, answer_start}}")
    elif value is not None:
        row.fault("answers", f"is {type_name(value)}, must be text or a list of {{text, answer_start}}")
    if not texts and not impossible and value is not None and not row.faults and "is_impossible" in row.value:
        row.fault("answers", "is empty, but is_impossible is not true; write an answer or set it")
    answers: list[str] = []
    checked_starts: list[int] = []
    for number, text in enumerate(texts):
        answer = row.checked("answers", text, at=f"[{number}].text" if not isinstance(value, str) else "")
        start = _start(row, context, answer, starts[number] if number < len(starts) else None, number)
        if start is not None:
            answers.append(answer)
            checked_starts.append(start)
    return answers, checked_starts


def _start(row: RowReader, context: str, answer: str, start: Any, number: int) -> int | None:
    """The start of an answer in its context, checked or searched for; None, with a fault, if it does not match."""
    if not answer or not context:
        return None
    first = context.find(answer)
    if start is None:
        if first < 0:
            fault = f"{format_value(answer, 42)} does not occur in the context; copy it from there letter by letter"
            row.fault("answers", fault)
        return first if first >= 0 else None
    if not isinstance(start, int) or isinstance(start, bool):
        row.fault("answers", f"[{number}].answer_start is {type_name(start)}, must be a whole number")
        return None
    if start >= 0 and context.startswith(answer, start):
        return start
    actual = context[start : start + len(answer)] if start >= 0 else ""
    fix = f"answer_start is {_nearest(context, answer, start)}" if first >= 0 else "it occurs nowhere in the context"
    fault = f"{format_value(answer, 42)} is not at answer_start {start}, which has {format_value(actual, 42)}; {fix}"
    row.fault("answers", f"[{number}] {fault}")
    return None


def _nearest(context: str, answer: str, start: int) -> int:
    """The start of the occurrence of an answer nearest to a position."""
    before, after = context.rfind(answer, 0, max(0, start) + len(answer)), context.find(answer, max(0, start))
    return min((position for position in (before, after) if position >= 0), key=lambda position: abs(position - start))


@_converts("choice")
def _choice(row: RowReader) -> list[AnyRecord]:
    """A multiple-choice question in the form of MMLU, ARC, HellaSwag, SWAG, PIQA, COPA or WinoGrande."""
    question = row.text("question")
    names: list[str] = []
    if "," in row.column("choices"):
        columns = row.column("choices").split(",")
        choices = [row.checked("choices", row.value.get(name), at=f" ({name})") for name in columns]
    else:
        value = _at(row.value, row.column("choices"))[0]
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):
            names, value = [str(name) for name in value.get("label") or []], value["text"]
        else:
            value = row.items("choices")
        choices = [row.checked("choices", choice, at=f"[{number}]") for number, choice in enumerate(value)]
    if not row.faults and len(choices) < 2:
        row.fault("choices", f"has {len(choices)}; write at least two")
    return [Choice(question, choices, _right(row, names, choices))]


def _right(row: RowReader, names: list[str], choices: list[str]) -> int:
    """The index of the right choice, which the label names by number, letter, name or text."""
    value = row.raw("label")
    if value is None:
        return 0
    # The labels of columns option1 and option2 are "1" and "2".
    from_one = row.column("choices").startswith("option1")
    number: int | None = None
    if str(value) in names:
        number = names.index(str(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value - from_one
    elif isinstance(value, str) and value.strip().isdigit():
        number = int(value) - from_one
    elif isinstance(value, str) and len(value) == 1 and value.isalpha() and value.isascii():
        number = ord(value.upper()) - ord("A")
    elif value in choices:
        number = choices.index(value)
    if number is None or not 0 <= number < len(choices):
        allowed = f"0 to {len(choices) - 1}, or a letter from A"
        row.fault("label", f"{format_value(value)} is not one of the {len(choices)} choices; allowed are {allowed}")
    return number or 0


@_converts("pair")
def _pair(row: RowReader) -> list[AnyRecord]:
    if row.column("source") == row.column("target"):
        return [_translation(row)]
    source, target = row.text("source"), row.text("target")
    name = row.column("target")
    references: tuple[str, ...] = ()
    if name.endswith("1"):
        others = [row.value.get(name[:-1] + str(number)) for number in range(2, 10)]
        references = tuple(text for text in others if isinstance(text, str) and text.strip())
    return [Pair(source, target, (target, *references) if references else ())]


def _translation(row: RowReader) -> Pair:
    """A row {"translation": {"en": …, "de": …}}: source is the first language, target the second."""
    value = row.raw("source")
    if not isinstance(value, Mapping) or len(value) < 2:
        row.fault("source", 'must be {"en": …, "de": …}')
        return Pair("", "")
    (first, source), (second, target) = list(value.items())[:2]
    return Pair(row.checked("source", source, at=f".{first}"), row.checked("source", target, at=f".{second}"))


@_converts("sql")
def _sql(row: RowReader) -> list[AnyRecord]:
    database = row.text("database") if "database" in row.layout.parts else ""
    return [SQLQuestion(row.text("question"), row.text("query"), database)]


@_converts("chat")
def _chat(row: RowReader) -> list[AnyRecord]:
    return list(to_conversations(_renamed(row)))


@_converts("prompts")
def _prompts(row: RowReader) -> list[AnyRecord]:
    return [Conversation(messages) for messages in to_prompts(_renamed(row))]


@_converts("preference")
def _preference(row: RowReader) -> list[AnyRecord]:
    return list(to_preferences(_renamed(row)))


@_converts("rated")
def _rated(row: RowReader) -> list[AnyRecord]:
    return list(to_ratings(_renamed(row)))


def _renamed(row: RowReader) -> dict[str, Any]:
    """The fields of a row by role; if the user assigned columns, only these and the inputs of the chat template."""
    parts = row.layout.parts
    if all(part == column for part, column in parts.items()):
        return dict(row.value)
    inputs = {name: row.value[name] for name in TEMPLATE_INPUTS if name in row.value and name not in parts.values()}
    return inputs | {part: row.raw(part) for part in parts}
