"""Converts rows to typed records. Each role is read from its column; every fault names its field and a fix.

The fields of a chat's row tell its format: `messages` (OpenAI, Hugging Face), `conversations` (ShareGPT),
`instruction`/`input`/`output` (Alpaca) or `prompt`/`completion`; preference pairs have `chosen` and `rejected`. All
faults of a row are raised at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import lone_surrogate, parse_json
from quatrain.core.wording import format_value, type_name
from quatrain.data.formats import CHAT_PAIRS, Layout, as_number
from quatrain.data.messages import ABOUT, ROLES, content_fault, weight_fault
from quatrain.data.records import (
    AnyRecord,
    Choice,
    Conversation,
    Document,
    Fault,
    LabelledText,
    Message,
    Messages,
    Pair,
    Preference,
    Question,
    Row,
    SQLQuestion,
    TaggedTokens,
    field_names,
    raise_together,
)

# Role names of public data sets -> roles of chat templates.
_ROLES = {
    **{role: role for role in ROLES},
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_FORMATS = (
    '{"messages": [{"role": …, "content": …}]}, {"conversations": [{"from": …, "value": …}]}, '
    '{"instruction": …, "input": …, "output": …} or {"prompt": …, "completion": …}'
)
_PREFERENCE_FORMATS = (
    '{"prompt": …, "chosen": …, "rejected": …}, with texts or lists of messages; or {"instruction": …, "chosen": …, '
    '"rejected": …}; or chosen and rejected conversations that begin alike'
)
_TURN = re.compile(r"\n\n(Human|Assistant):")


_TEMPLATE_LISTS = (("tools", "functions"), ("documents",))
"""Inputs of a chat template that are lists of objects, each under the names that data sets use."""

TEMPLATE_INPUTS = ("tools", "functions", "documents", "chat_template_kwargs")
"""Fields of a row that the chat template gets, whichever columns hold the conversation."""


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


def _renamed(row: RowReader) -> dict[str, Any]:
    """The fields of a row by role; if the user assigned columns, only these and the inputs of the chat template."""
    parts = row.layout.parts
    if all(part == column for part, column in parts.items()):
        return dict(row.value)
    inputs = {name: row.value[name] for name in TEMPLATE_INPUTS if name in row.value and name not in parts.values()}
    return inputs | {part: row.raw(part) for part in parts}


def to_conversations(fields: dict[str, Any]) -> list[Conversation]:
    """The conversations of a row: one, or one per instance of a Self-Instruct seed task (Wang et al. 2022, arXiv
    2212.10560). Raises Fault with all faults.
    """
    if "instances" in fields and "instruction" in fields and "output" not in fields:
        return [Conversation(messages) for messages in _instances(fields)]
    faults: list[Fault] = []
    messages: list[Message] = []
    try:
        messages = _conversation(fields)
    except Fault as fault:
        faults.append(fault)
    inputs = _template_inputs(fields, faults)
    raise_together(faults)
    return [Conversation(messages, **inputs)]


def _template_inputs(fields: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """A row's tools, documents and chat_template_kwargs, which may be JSON text; adds faults to `faults`."""
    inputs: dict[str, Any] = {}
    for names in _TEMPLATE_LISTS:
        name = next((name for name in names if fields.get(name) not in (None, "")), None)
        if name is None:
            continue
        if name == "documents" and not _are_objects(fields[name]):
            continue  # a column with another meaning, which no template reads; `data check` reports it
        try:
            value = _from_json(fields[name], name, list)
            if not all(isinstance(item, dict) for item in value):
                raise Fault(f"field {name!r}: must be a list of objects")
            inputs[names[0]] = value
        except Fault as fault:
            faults.append(fault)
    if fields.get("chat_template_kwargs") not in (None, ""):
        try:
            inputs["variables"] = _from_json(fields["chat_template_kwargs"], "chat_template_kwargs", dict)
        except Fault as fault:
            faults.append(fault)
    return inputs


def _are_objects(value: Any) -> bool:
    """Whether a value is a list of objects, or JSON text that may be one."""
    if isinstance(value, str):
        return value.lstrip()[:1] == "["
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _from_json(value: Any, name: str, kind: type) -> Any:
    """A list or object, which a table may hold as JSON text."""
    if isinstance(value, str):
        try:
            return parse_json(value, f"field {name!r}", kind)
        except InputError as error:
            raise Fault(error.message, name) from error
    if not isinstance(value, kind):
        raise Fault(f"field {name!r} is {type_name(value)}, must be {'a list' if kind is list else 'an object'}")
    return value


def parsed(text: str, name: str) -> Any:
    """The value of JSON text in the field `name`. Raises Fault for invalid or too deeply nested JSON."""
    try:
        return parse_json(text, "the text", Any)
    except InputError as error:
        raise Fault(f"field {name!r}: not valid JSON ({error.message})", name) from error


def to_prompts(fields: dict[str, Any]) -> list[list[Message]]:
    """The prompts of a row, without answers: the first of the `turns` of MT-bench (Zheng et al. 2023, arXiv
    2306.05685), a `prompt`, or an `instruction` with its `input`. Raises Fault.
    """
    if "turns" in fields:
        turns = fields["turns"]
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
            raise Fault("field 'turns': must be a list of texts with at least one", "turns")
        return [[_turn("user", turns[0])]]
    return [_prompt(fields, "prompt") if "prompt" in fields else _alpaca_prompt(fields)]


def to_preferences(fields: dict[str, Any]) -> list[Preference]:
    """The preference pair of a row; none if two answers were judged equal. Raises Fault."""
    if {"output_1", "output_2", "preference"} <= fields.keys() and "chosen" not in fields:
        return _judged(fields)
    preference = _paired(fields)
    faults: list[Fault] = []
    inputs = _template_inputs(fields, faults)
    raise_together(faults)
    return [Preference(Messages(preference.prompt, **inputs), preference.chosen, preference.rejected)]


def _instances(fields: dict[str, Any]) -> list[list[Message]]:
    instances = fields["instances"]
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise Fault('field \'instances\': must be a list of {"input": …, "output": …}', "instances")
    return [_conversation({"instruction": fields["instruction"], **instance}) for instance in instances]


def _judged(fields: dict[str, Any]) -> list[Preference]:
    """A judgement of AlpacaEval (Li et al. 2023): 1 or 2 is the better output, 0 and 1.5 are ties."""
    judged = fields["preference"]
    try:
        which = float(judged)
    except (TypeError, ValueError):
        which = -1.0
    if which not in (0.0, 1.0, 1.5, 2.0):
        raise Fault(f"field 'preference' is {judged!r}; allowed are 1 and 2, and 0 or 1.5 for a tie", "preference")
    if which in (0.0, 1.5):
        return []
    better, worse = ("output_1", "output_2") if which == 1.0 else ("output_2", "output_1")
    answers = ([_turn("assistant", _text_field(fields, name))] for name in (better, worse))
    return [Preference(_alpaca_prompt(fields), *answers)]


def _conversation(fields: dict[str, Any]) -> list[Message]:
    if "messages" in fields or "conversations" in fields:
        name = "messages" if "messages" in fields else "conversations"
        messages = _messages(fields[name], name)
        if isinstance(fields.get("system"), str) and fields["system"] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": fields["system"]})
        if not any(message["role"] == "assistant" for message in messages):
            raise Fault(f"field {name!r}: it has no turn of the assistant, so nothing can be learned; remove it")
        return messages
    if "instruction" in fields:
        return _concatenated(
            lambda: _alpaca_prompt(fields), lambda: [_turn("assistant", _text_field(fields, "output"))]
        )
    for prompt, answer in CHAT_PAIRS:
        if prompt in fields and answer in fields:
            return _concatenated(partial(_prompt, fields, prompt), partial(_answer, fields, answer))
    raise Fault(f"fields {field_names(fields)}: not a conversation; write {_FORMATS}")


def _paired(fields: dict[str, Any]) -> Preference:
    missing = [name for name in ("chosen", "rejected") if name not in fields]
    if missing:
        raise Fault(f"no field {' and '.join(map(repr, missing))}; write {_PREFERENCE_FORMATS}")
    chosen, rejected = (_answer(fields, name) for name in ("chosen", "rejected"))
    if "prompt" in fields:
        return Preference(_prompt(fields, "prompt"), chosen, rejected)
    if "instruction" in fields:
        return Preference(_alpaca_prompt(fields), chosen, rejected)
    if "question" in fields:
        return Preference(_prompt(fields, "question"), chosen, rejected)
    for name in ("messages", "conversations"):
        if name in fields:
            return Preference(_messages(fields[name], name), chosen, rejected)
    return _split_pair(
        *(
            _dialogue(fields[name]) if isinstance(fields[name], str) else answer
            for name, answer in (("chosen", chosen), ("rejected", rejected))
        )
    )


def _concatenated(*parts: Callable[[], list[Message]]) -> list[Message]:
    """The messages of several parts, concatenated. Raises Fault with the faults of all parts."""
    messages: list[Message] = []
    faults = []
    for part in parts:
        try:
            messages += part()
        except Fault as fault:
            faults.append(fault)
    raise_together(faults)
    return messages


def _split_pair(chosen: list[Message], rejected: list[Message]) -> Preference:
    """Two whole conversations split into their common prompt and two answers."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    # Of equal conversations, the last message is the answer.
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    if same < 1:
        raise Fault(f"chosen and rejected do not begin alike and there is no prompt; write {_PREFERENCE_FORMATS}")
    return Preference(chosen[:same], chosen[same:], rejected[same:])


def _dialogue(text: str) -> list[Message]:
    """The messages of a dialogue in one text, in the form of Anthropic's HH-RLHF (Bai et al. 2022)."""
    before, *turns = _TURN.split(text)
    if not turns or before.strip():
        raise Fault(f"no prompt in addition to chosen and rejected; write {_PREFERENCE_FORMATS}")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [_turn(roles[name], text.removeprefix(" ")) for name, text in pairs]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text_field(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise Fault(f"no field {name!r}; the row has {field_names(fields)}; add it")
    value = fields[name]
    if not isinstance(value, str):
        raise Fault(f"field {name!r} is {type_name(value)}, must be text")
    _check_characters(value, name)
    return value


def _check_characters(text: str, name: str) -> None:
    if (fault := lone_surrogate(text)) is not None:
        raise Fault(f"field {name!r}: {fault}")


def _prompt(fields: dict[str, Any], name: str) -> list[Message]:
    if isinstance(fields[name], list):
        return _messages(fields[name], name)
    system = [_turn("system", fields["system"])] if isinstance(fields.get("system"), str) and fields["system"] else []
    return [*system, _turn("user", _text_field(fields, name))]


def _answer(fields: dict[str, Any], name: str) -> list[Message]:
    value = fields[name]
    if isinstance(value, dict):
        return _messages([value], name)
    if isinstance(value, list):
        return _messages(value, name)
    return [_turn("assistant", _text_field(fields, name))]


def _alpaca_prompt(fields: dict[str, Any]) -> list[Message]:
    """The prompt of an Alpaca row: the instruction with the input below it (Taori et al. 2023)."""
    messages = []
    if isinstance(fields.get("system"), str) and fields["system"]:
        messages.append(_turn("system", fields["system"]))
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Fault("field 'history': must be a list of [question, answer] pairs of texts")
        messages += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    instruction = _text_field(fields, "instruction")
    context = _text_field(fields, "input") if fields.get("input") is not None else ""
    return [*messages, _turn("user", f"{instruction}\n\n{context}" if context.strip() else instruction)]


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, str) and value[:1] == "[":  # CSV and Parquet files may hold the list as JSON
        value = parsed(value, name)
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type_name(value)
        raise Fault(f"field {name!r} is {kind}, must be a list of messages")
    messages, faults = [], []
    for number, message in enumerate(value):
        try:
            messages.append(_message(message, f"{name}[{number}]"))
        except Fault as fault:
            faults.append(fault)
    raise_together(faults)
    return messages


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise Fault(f'field {place!r} is {type_name(value)}, must be {{"role": …, "content": …}}')
    role_name, content_name = ("from", "value") if "from" in value else ("role", "content")
    if role_name not in value:
        raise Fault(f"field {place!r}: no 'role'; the message has {field_names(value)}; add it")
    role_value = value[role_name]
    role = _ROLES.get(role_value.lower()) if isinstance(role_value, str) else None
    if role is None:
        allowed = "user, assistant, tool" if role_name == "role" else "human, gpt, function_call, observation"
        raise Fault(f"field '{place}.{role_name}' is {role_value!r}; allowed are system, {allowed}")
    content = value.get(content_name)
    rest = {key: item for key, item in value.items() if key not in (role_name, content_name)}
    if isinstance(role_value, str) and role_value.lower() == "function_call" and "function_call" not in value:
        return {"role": role, "content": "", "tool_calls": [_call(content, f"{place}.{content_name}")], **rest}
    if fault := weight_fault(value):
        raise Fault(f"field '{place}.weight': {fault}")
    replacements = {key for key, item in rest.items() if item is not None} - ABOUT
    if content_name not in value and not replacements:
        raise Fault(f"field {place!r}: no {content_name!r}; the message has {field_names(value)}; add it")
    if content is None and not replacements:
        raise Fault(f"field '{place}.{content_name}' is null, must be text")
    if content is not None and (fault := content_fault(content, role)):
        raise Fault(f"field '{place}.{content_name}' is {type_name(content)}, {fault}")
    for text in [content] if not isinstance(content, list) else [part.get("text") for part in content]:
        if isinstance(text, str):
            _check_characters(text, f"{place}.{content_name}")
    return {"role": role, **({"content": content} if content_name in value else {}), **rest}


def _call(content: Any, place: str) -> dict[str, Any]:
    """A ShareGPT function call, JSON text {"name": …, "arguments": …}, as an OpenAI tool call."""
    call = parsed(content, place) if isinstance(content, str) else content
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise Fault(f'field {place!r}: must be {{"name": …, "arguments": …}}')
    return {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
