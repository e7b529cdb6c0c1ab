"""Converts rows to typed records: reads each role from its column and names every fault with its field and fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quatrain.core.wording import type_name
from quatrain.data.conversations import BESIDE, parsed, to_conversations, to_preferences, to_prompts
from quatrain.data.formats import Layout, as_number
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
    raise_together,
)


def convert(row: Row, layout: Layout) -> list[AnyRecord]:
    """The typed records of a row: usually one; none for an empty text or a preference judged as a tie.

    Raises Fault with all faults of the row.
    """
    if row.fault is not None:
        raise Fault(row.fault)
    value = row.value
    if layout.format in ("text", "lines") and isinstance(value, str):
        return [Document(value)] if value.strip() else []
    if not isinstance(value, Mapping):
        raise Fault(f"found {type(value).__name__}, expected an object with fields; write {{…}}")
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
            names = ", ".join(repr(each) for each in list(self.value)[:12]) or "(none)"
            self.faults.append(Fault(f"no field {name!r} beside {names}; add it", name))
        elif value is None:
            self.fault(part, "is null; write a value or take the row out")
        return value

    def has(self, part: str) -> bool:
        """Whether a role's column has a value."""
        return _at(self.value, self.column(part))[0] is not None

    def text(self, part: str, *, may_be_empty: bool = False) -> str:
        """The text of a role; "", with a fault, if there is none."""
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
            self.faults.append(Fault(f"field {name!r} is empty; write a text or take the row out", name))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            fault = f"field {name!r}: half of a character (\\u{code:04x}) at {error.start}; remove it"
            self.faults.append(Fault(fault, name))
        return value

    def items(self, part: str) -> list[Any]:
        """The list of a role, which a table may hold as JSON; [], with a fault, if there is none."""
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


def _at(value: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    """The value of a column, and whether the column exists; "a.b" is field b of the object a."""
    if name in value:
        return value[name], True
    outer, dot, inner = name.partition(".")
    nested = value.get(outer) if dot else None
    return _at(nested, inner) if isinstance(nested, Mapping) else (None, False)


def _text(row: RowReader) -> list[AnyRecord]:
    value, exists = _at(row.value, row.column("text"))
    if exists and value is None:
        return []
    text = row.text("text", may_be_empty=True)
    return [Document(text)] if text.strip() else []


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
            row.fault("label", f"{value!r} is no number as the others are; write one")
        return number or 0.0
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        if value < 0:
            row.fault("label", f"{value} stands for no label; take the row out")
        return str(value)
    if not isinstance(value, str):
        row.fault("label", f"is {type_name(value)}, must be a text or a whole number")
        return ""
    if not value.strip():
        row.fault("label", "is empty; write the class")
        return ""
    return row.checked("label", value).strip()


def _tagged(row: RowReader) -> list[AnyRecord]:
    words, tags = row.items("words"), row.items("tags")
    if not row.faults and not words:
        row.fault("words", "is an empty list; take the row out")
    if not row.faults and len(words) != len(tags):
        row.fault("tags", f"{len(tags)} tags for {len(words)} words; each word needs one")
    for number, word in enumerate(words):
        row.checked("words", word, at=f"[{number}]")
    read: list[str] = []
    for number, tag in enumerate(tags):
        whole = isinstance(tag, int) and not isinstance(tag, bool)
        read.append(str(tag) if whole else row.checked("tags", tag, at=f"[{number}]"))
    numbers = bool(tags) and all(isinstance(tag, int) and not isinstance(tag, bool) for tag in tags)
    return [TaggedTokens(list(words), read, numbers)]


def _question(row: RowReader) -> list[AnyRecord]:
    """A question of a nested SQuAD file or of a flat row; answers without a start are searched in the context."""
    context, question = row.text("context"), row.text("question")
    answers, starts = _answers(row, context)
    name = row.value.get(row.layout.parts.get("id", "id"))
    return [Question(context, question, answers, starts, str(name) if name is not None else row.place)]


def _answers(row: RowReader, context: str) -> tuple[list[str], list[int]]:
    value = row.raw("answers")
    impossible = row.value.get("is_impossible") is True
    texts: list[Any] = []
    places: list[Any] = []
    if isinstance(value, str):
        texts = [value] if value.strip() else []
        at = row.value.get(row.layout.parts.get("starts", "answer_start"))
        places = [int(at) if isinstance(at, str) and at.strip().isdigit() else at]
    elif isinstance(value, Mapping):
        texts, places = value.get("text"), value.get("answer_start", [])  # type: ignore[assignment]
        texts = [texts] if isinstance(texts, str) else texts
        places = [places] if isinstance(places, int) else places
        if not isinstance(texts, list) or not isinstance(places, list) or len(places) not in (0, len(texts)):
            row.fault("answers", "must have as many answer_start as text, both lists")
            return [], []
    elif isinstance(value, list):
        for number, each in enumerate(value):
            if isinstance(each, Mapping):
                texts.append(each.get("text"))
                places.append(each.get("answer_start"))
            elif isinstance(each, str):
                texts.append(each)
                places.append(None)
            else:
                row.fault("answers", f"number {number} is {type_name(each)}, must be {{text, answer_start}}")
    elif value is not None:
        row.fault("answers", f"is {type_name(value)}, must be a text or a list of {{text, answer_start}}")
    if not texts and not impossible and value is not None and not row.faults and "is_impossible" in row.value:
        row.fault("answers", "is empty, but is_impossible is not true; write an answer or set it")
    found: list[str] = []
    starts: list[int] = []
    for number, text in enumerate(texts):
        place = places[number] if number < len(places) else None
        read = row.checked("answers", text, at=f"[{number}].text" if not isinstance(value, str) else "")
        start = _start(row, context, read, place, number)
        if start is not None:
            found.append(read)
            starts.append(start)
    return found, starts


def _start(row: RowReader, context: str, answer: str, place: Any, number: int) -> int | None:
    """The start of an answer in its context; None, with a fault, if it is not there."""
    if not answer or not context:
        return None
    near = context.find(answer)
    if place is None:
        if near < 0:
            row.fault("answers", f"{_short(answer)} does not occur in the context; copy it from there letter by letter")
        return near if near >= 0 else None
    if not isinstance(place, int) or isinstance(place, bool):
        row.fault("answers", f"[{number}].answer_start is {type_name(place)}, must be a whole number")
        return None
    if place >= 0 and context.startswith(answer, place):
        return place
    there = context[max(0, place) : max(0, place) + len(answer)] if place >= 0 else ""
    fix = f"answer_start is {_nearest(context, answer, place)}" if near >= 0 else "it occurs nowhere in the context"
    row.fault("answers", f"[{number}] {_short(answer)} is not at answer_start {place}, {_short(there)} is; {fix}")
    return None


def _nearest(context: str, answer: str, place: int) -> int:
    """The start of the occurrence of an answer nearest to a position."""
    before, after = context.rfind(answer, 0, max(0, place) + len(answer)), context.find(answer, max(0, place))
    places = [each for each in (before, after) if each >= 0]
    return min(places, key=lambda each: abs(each - place))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


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
            names, value = [str(each) for each in value.get("label") or []], value["text"]
        else:
            value = row.items("choices")
        choices = [row.checked("choices", each, at=f"[{number}]") for number, each in enumerate(value)]
    if not row.faults and len(choices) < 2:
        row.fault("choices", f"{len(choices)} of them; write at least two")
    return [Choice(question, choices, _right(row, names, choices))]


def _right(row: RowReader, names: list[str], choices: list[str]) -> int:
    """The index of the right choice, given by number, letter, name, or the text of the choice."""
    value = row.raw("label")
    if value is None:
        return 0
    # Columns called option1 and option2 are answered by "1" and "2".
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
        row.fault("label", f"{value!r} is none of the {len(choices)} choices; allowed are {allowed}")
    return number or 0


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


def _sql(row: RowReader) -> list[AnyRecord]:
    database = row.text("database") if "database" in row.layout.parts else ""
    return [SQLQuestion(row.text("question"), row.text("query"), database)]


def _chat(row: RowReader) -> list[AnyRecord]:
    return list(to_conversations(_renamed(row)))


def _prompts(row: RowReader) -> list[AnyRecord]:
    return [Conversation(messages) for messages in to_prompts(_renamed(row))]


def _preference(row: RowReader) -> list[AnyRecord]:
    return list(to_preferences(_renamed(row)))


def _renamed(row: RowReader) -> dict[str, Any]:
    """The fields of a row by role; only the assigned columns if the user assigned columns."""
    parts = row.layout.parts
    if all(part == column for part, column in parts.items()):
        return dict(row.value)
    beside = {name: row.value[name] for name in BESIDE if name in row.value and name not in parts.values()}
    return beside | {part: row.raw(part) for part in parts}


_CONVERTERS: dict[str, Callable[[RowReader], list[AnyRecord]]] = {
    "text": _text,
    "lines": _text,
    "chat": _chat,
    "prompts": _prompts,
    "preference": _preference,
    "labelled": _labelled,
    "tagged": _tagged,
    "qa": _question,
    "choice": _choice,
    "pair": _pair,
    "sql": _sql,
}
