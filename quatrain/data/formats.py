"""Formats found by themselves: which task the columns of a row belong to, and what each column is in it.

A `Layout` is a format with the columns that hold its parts. It is told by the names of the columns, which are those of
the data sets that people have (GLUE, SQuAD, CoNLL, MMLU, Alpaca, ShareGPT, …), by those that a user names by hand, and
for tables without a header by what stands in their first rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import suggest

#: Every format, and the parts that a user may give columns to; those behind "?" may be absent.
PARTS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "lines": ("text",),
    "chat": ("messages", "prompt", "completion", "instruction", "input?", "output"),
    "prompts": ("turns", "prompt", "instruction"),
    "preference": ("prompt", "chosen", "rejected"),
    "labelled": ("text", "other?", "label", "score"),
    "tagged": ("words", "tags"),
    "qa": ("context", "question", "answers", "starts?", "id?"),
    "choice": ("question", "choices", "label"),
    "pair": ("source", "target"),
    "sql": ("question", "query", "database?"),
}
FORMATS = tuple(PARTS)

#: What each format is, in the words of a message.
WORDS = {
    "text": "documents",
    "lines": "lines",
    "chat": "conversations",
    "prompts": "prompts",
    "preference": "preference pairs",
    "labelled": "labelled texts",
    "tagged": "tagged words",
    "qa": "questions about texts",
    "choice": "multiple-choice questions",
    "pair": "pairs of texts",
    "sql": "questions with SQL",
}

CHAT_BESIDE = ("system", "tools", "functions", "documents")
"""Columns that belong to a conversation beside its messages."""

CHAT_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))

_WORDS = ("tokens", "words", "form")
_TAGS = ("ner_tags", "ner", "pos_tags", "upos", "tags", "labels", "pos", "upos_tags", "xpos")
_CONTEXTS = ("context", "passage", "paragraph")
_ANSWERS = ("answers", "answer")
_CHOICES: tuple[dict[str, str], ...] = (
    {"question": "question", "choices": "choices", "label": "answerKey"},
    {"question": "question", "choices": "choices", "label": "answer"},
    {"question": "question", "choices": "choices", "label": "label"},
    {"question": "question", "choices": "options", "label": "answer"},
    {"question": "ctx", "choices": "endings", "label": "label"},
    {"question": "startphrase", "choices": "ending0,ending1,ending2,ending3", "label": "label"},
    {"question": "goal", "choices": "sol1,sol2", "label": "label"},
    {"question": "premise", "choices": "choice1,choice2", "label": "label"},
    {"question": "sentence", "choices": "option1,option2", "label": "answer"},
)
_TEXT_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("sentence_A", "sentence_B"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("text", "other"),
    ("question", "passage"),
)
_TEXTS = ("text", "sentence", "review", "content", "comment", "tweet", "document", "question", "title", "sms")
_SCORES = ("score", "similarity", "similarity_score", "relatedness_score")
_LABELS = (
    *("label", "labels", "class", "sentiment", "category", "target", "label_text", "coarse_label", "intent"),
    *("stars", "rating", "answer", "topic"),
)
_QUERIES = ("query", "sql", "SQL")
_DATABASES = ("db_id", "database")
_PAIRS = (
    ("source", "target"),
    ("src", "tgt"),
    ("dialogue", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("document", "summary"),
    ("text", "summary"),
    ("input_text", "target_text"),
    ("inputs", "targets"),
    ("input", "target"),
    ("dialogue", "summary1"),
)
_EXACT = (
    *(name for pair in (*_TEXT_PAIRS, *_PAIRS, *CHAT_PAIRS) for name in pair),
    *(column for parts in _CHOICES for each in parts.values() for column in each.split(",")),
    *(*_TEXTS, *_SCORES, *_LABELS, *_QUERIES[:1], *_DATABASES, *_WORDS, *_TAGS, *_CONTEXTS, *_ANSWERS),
    *("messages", "conversations", "instruction", "output", "instances", "turns", "chosen", "rejected"),
)
"""The names as the data sets that people have write them."""

_LANGUAGES = {
    *"ar bg bn cs da de el en es et fa fi fr he hi hr hu it ja ko lt lv nl pl pt ro ru sk sl sv th tr uk vi zh"
    .split(),
    *"eng fra deu spa ita por rus english french german spanish italian portuguese russian chinese dutch".split(),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A format, the column of each of its parts (`parts`), and whether its labels are numbers to foretell (`scores`).

    Several columns that make up one part, such as the choices of a question, are parted by commas.
    """

    format: str
    parts: Mapping[str, str] = field(default_factory=dict)
    scores: bool = False

    def describe(self) -> str:
        """Such as "labelled texts (text: sentence, label: label)"."""
        columns = ", ".join(f"{part}: {column}" for part, column in self.parts.items())
        return WORDS[self.format] + (f" ({columns})" if columns else "")


def detect_layout(
    rows: Sequence[Any], *, columns: Mapping[str, str] | None = None, format: str | None = None
) -> Layout | None:
    """The layout of some first rows of a file, None where their columns tell of none.

    Raises InputError for columns that a user gives to parts which no format has together.
    """
    found = [row for row in rows if isinstance(row, Mapping)]
    names = dict.fromkeys(name for row in found[:8] for name in row)
    if columns:
        layout = layout_from_columns(columns, format)
        if layout.format == "tagged" and "words" not in layout.parts:
            words = next((name for name in _WORDS if name in names), next(iter(names), "1"))
            layout = Layout("tagged", {"words": words, **layout.parts})
        return _with_scores(layout, found)
    if not found:
        return None
    for layout in _layouts(list(names)):
        if format is None or layout.format == format:
            return _with_scores(layout, found)
    if not all(name.isdigit() for name in names):
        return None
    if any(isinstance(value, list) for value in found[0].values()):
        # CoNLL's columns: the first holds the words, the last the tags (Tjong Kim Sang and De Meulder 2003).
        first, *_, last = names
        return Layout("tagged", {"words": first, "tags": last}) if format in (None, "tagged") else None
    if format in (None, "labelled", "pair", "text"):
        return _unnamed(found, list(names), format)
    return None


def _candidates(names: list[str]) -> Iterator[Layout]:
    """The layouts that columns of these names may have, the likeliest first."""
    has = set(names)
    if {"chosen", "rejected"} <= has or {"instruction", "output_1", "output_2", "preference"} <= has:
        yield Layout("preference")
    yield from _tagged(names)
    yield from (
        Layout("qa", {"context": context, "question": "question", "answers": answers})
        for context in _CONTEXTS
        for answers in _ANSWERS
        if {context, "question", answers} <= has
    )
    for parts in _CHOICES:
        if all(column in has for part in parts.values() for column in part.split(",")):
            yield Layout("choice", parts)
    if {"messages", "conversations"} & has or {"instruction", "output"} <= has or {"instruction", "instances"} <= has:
        yield Layout("chat")
    yield from _sql(has)
    yield from _pairs(names)
    yield from _labelled(has)
    if any({*pair} <= has for pair in CHAT_PAIRS):
        yield Layout("chat")
    if "text" in has:
        yield Layout("text", {"text": "text"})
    for name in ("turns", "prompt", "instruction"):
        if name in has:
            yield Layout("prompts", {name: name})


def _layouts(names: list[str]) -> Iterator[Layout]:
    """The layouts of columns by their names, then by what these mean; those that read one column come last."""
    exact = list(_candidates(names))
    yield from (layout for layout in exact if layout.format not in ("text", "prompts"))
    yield from _written_otherwise(names)
    yield from (layout for layout in exact if layout.format in ("text", "prompts"))


def has_known_columns(names: Sequence[str]) -> bool:
    """Whether columns of these names are those of a format."""
    named = [name for name in names if name]
    return any(True for _ in _layouts(named))


_SYNONYMS = {
    "text": (
        *("body", "message", "msg", "utterance", "headline", "description", "review_text", "review_body", "tweet_text"),
        *("comment_text", "text_body", "sentence_text", "full_text", "content_text", "reviews", "texts", "sentences"),
    ),
    "label": (
        *("classification", "polarity", "emotion", "class_label", "label_name", "class_name", "category_name"),
        *("gold_label", "gold", "label_id", "sentiment_label", "airline_sentiment", "classes", "categories"),
    ),
}
"""Names that others give to the columns of labelled texts; each means the first name of its kind."""


def _plain_name(name: str) -> str:
    """A column's name without case, spaces, hyphens, underscores, dots and byte order marks."""
    return re.sub(r"[\s\-_.\ufeff]+", "", name).casefold()


def _synonym(name: str) -> str:
    plain = _plain_name(name)
    return next((known for known, others in _SYNONYMS.items() if plain in map(_plain_name, others)), plain)


def _written_otherwise(names: list[str]) -> Iterator[Layout]:
    """The layouts of columns whose names differ in case, spaces or hyphens from those that are known; of labelled texts
    also synonyms count. Two columns that mean the same tell nothing.
    """
    known = {_plain_name(name): name for name in _EXACT}
    for meaning in (_plain_name, _synonym):
        exact = {known.get(plain, plain): name for name in names for plain in [meaning(name)]}
        if len(exact) == len(names) and list(exact) != names:
            found = (_in_their_words(layout, exact) for layout in _candidates(list(exact)))
            yield from (layout for layout in found if meaning is _plain_name or layout.format == "labelled")


def _in_their_words(layout: Layout, exact: Mapping[str, str]) -> Layout:
    """A layout with the columns as they are written; `exact` has those of the names that are known."""
    parts = dict(layout.parts)
    if layout.format == "chat":
        parts = {name: name for name in ("messages", "instruction", "input", "output", *CHAT_BESIDE) if name in exact}
        pair = next((pair for pair in CHAT_PAIRS if {*pair} <= set(exact)), None)
        if "conversations" in exact:
            parts = {name: name for name in parts if name in CHAT_BESIDE} | {"messages": "conversations"}
        elif pair is not None and not {"messages", "instruction"} & set(parts):
            parts = {name: name for name in parts if name in CHAT_BESIDE} | {"prompt": pair[0], "completion": pair[1]}
    elif layout.format == "preference":
        parts = {name: name for name in PARTS["preference"] if name in exact}
    written = {part: ",".join(exact[each] for each in column.split(",")) for part, column in parts.items()}
    return Layout(layout.format, written)


def _tagged(names: list[str]) -> Iterator[Layout]:
    yield from (Layout("tagged", {"words": w, "tags": t}) for w in _WORDS for t in _TAGS if {w, t} <= set(names))


def _labelled(has: set[str]) -> Iterator[Layout]:
    for labels, part in ((_SCORES, "score"), (_LABELS, "label")):
        for label in labels:
            if label not in has:
                continue
            for text, other in _TEXT_PAIRS:
                if {text, other} <= has - {label}:
                    yield Layout("labelled", {"text": text, "other": other, part: label})
            # A question with its answer is a conversation, a text with its topic may be one to classify.
            for text in _TEXTS:
                if text in has - {label} and (text, label) not in CHAT_PAIRS:
                    yield Layout("labelled", {"text": text, part: label})


def _sql(has: set[str]) -> Iterator[Layout]:
    for query in _QUERIES:
        if {"question", query} <= has:
            named = next((name for name in _DATABASES if name in has), None)
            parts = {"question": "question", "query": query}
            yield Layout("sql", parts | ({"database": named} if named else {}))


def _pairs(names: list[str]) -> Iterator[Layout]:
    has = set(names)
    yield from (Layout("pair", {"source": a, "target": b}) for a, b in _PAIRS if {a, b} <= has)
    if "translation" in has:
        yield Layout("pair", {"source": "translation", "target": "translation"})
    languages = [name for name in names if name.lower() in _LANGUAGES]
    if len(languages) == 2:
        yield Layout("pair", {"source": languages[0], "target": languages[1]})


def input_columns(names: Sequence[str], format: str) -> dict[str, str]:
    """The columns of what a format asks, by its parts without the answer: the text of a label, the words of tags.

    For `text`, a pair of texts is `text` and `other`, and an only column is the text. {} where the names tell nothing.
    """
    wanted: dict[str, tuple[dict[str, str], ...]] = {
        "tagged": tuple({"words": name} for name in _WORDS),
        "qa": tuple({"context": name, "question": "question"} for name in _CONTEXTS),
        "choice": tuple({part: column for part, column in each.items() if part != "label"} for each in _CHOICES),
        "pair": tuple({"source": source} for source, _ in _PAIRS),
    }
    texts = (*({"text": text, "other": other} for text, other in _TEXT_PAIRS), *({"text": name} for name in _TEXTS))
    choices = (*wanted.get(format, ()), *(texts if format in ("text", "tagged") else ()))
    known = {_plain_name(name): name for name in _EXACT}
    for meaning in (str, _plain_name, _synonym):
        exact = {known.get(plain, plain): name for name in names for plain in [meaning(name)]}
        for parts in choices:
            if all(each in exact for column in parts.values() for each in column.split(",")):
                return {part: ",".join(exact[each] for each in column.split(",")) for part, column in parts.items()}
    return {"text": names[0]} if format == "text" and len(names) == 1 else {}


def layout_from_columns(columns: Mapping[str, str], format: str | None = None) -> Layout:
    """The layout whose parts a user has given columns to. Raises InputError where there is none."""
    given = set(columns)
    fitting = []
    for name, parts in PARTS.items():
        allowed = {part.rstrip("?") for part in parts}
        if (format is None or name == format) and given <= allowed and _complete(name, given):
            fitting.append(name)
    if fitting:
        return Layout(fitting[0], dict(columns))
    known = dict.fromkeys(part.rstrip("?") for parts in PARTS.values() for part in parts)
    problems = []
    for part in columns:
        if part not in known:
            near = suggest(part, known)
            hint = f"; did you mean {near}?" if near else ""
            problems.append(f"columns.{part}: no part of any format{hint}")
    if not problems:
        kind = f"the format {format}" if format else "no format"
        problems.append(f"columns: {', '.join(columns)} together are {'not ' if format else ''}{kind}'s parts")
    sets = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in PARTS.items() if name == (format or name))
    what = "data.columns do not say what the data is. Each format's parts (? may be absent)"
    raise InputError(f"{what}: {sets}", problems)


def _complete(name: str, given: set[str]) -> bool:
    """Whether the parts that were given are enough for a format."""
    enough = {
        "text": [{"text"}],
        "lines": [],
        "chat": [{"messages"}, {"prompt", "completion"}, {"instruction", "output"}],
        "prompts": [{"turns"}, {"prompt"}, {"instruction"}],
        "labelled": [{"text", "label"}, {"text", "score"}],
        "preference": [{"chosen", "rejected"}],
        "qa": [{"context", "question", "answers"}],
        "choice": [{"question", "choices", "label"}],
        "tagged": [{"words", "tags"}, {"tags"}],
        "pair": [{"source", "target"}],
        "sql": [{"question", "query"}],
    }
    return any(needed <= given for needed in enough[name])


def _with_scores(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> Layout:
    """Labels are numbers to foretell where their column says so, or where one of them is no whole number."""
    if layout.format != "labelled":
        return layout
    if "score" in layout.parts:
        rest = {part: column for part, column in layout.parts.items() if part != "score"}
        return Layout(layout.format, rest | {"label": layout.parts["score"]}, scores=True)
    values = [row.get(layout.parts["label"]) for row in rows]
    return Layout(layout.format, layout.parts, scores=look_like_scores(values))


def look_like_scores(values: Sequence[Any]) -> bool:
    """Whether labels are numbers, and not all of them whole ones."""
    if not values or any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        return False
    numbers = [as_number(value) for value in values]
    whole = (isinstance(value, int) or (isinstance(value, str) and "." not in value) for value in values)
    return None not in numbers and not all(whole)


def as_number(value: Any) -> float | None:
    """A finite number out of a number or a text; None where there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _unnamed(rows: Sequence[Mapping[str, Any]], names: list[str], format: str | None) -> Layout | None:
    """Columns without names: labels are short, few and repeated; two columns of other texts are a pair."""
    columns = {name: [str(row.get(name, "")) for row in rows] for name in names}
    if len(names) == 1:
        return Layout("text", {"text": names[0]}) if format in (None, "text") else None
    if len(names) == 3 and format != "pair" and all(as_number(value) is not None for value in columns[names[2]]):
        return _with_scores(Layout("labelled", {"text": names[0], "other": names[1], "label": names[2]}), rows)
    if len(names) != 2:
        return None
    if format != "pair":
        for text, label in ((names[0], names[1]), (names[1], names[0])):
            if _are_labels(columns[label]) or look_like_scores(columns[label]):
                return _with_scores(Layout("labelled", {"text": text, "label": label}), rows)
    return Layout("pair", {"source": names[0], "target": names[1]}) if format != "labelled" else None


def _are_labels(values: Sequence[str]) -> bool:
    distinct = set(values)
    return max(map(len, distinct)) <= 40 and len(distinct) <= max(2, len(values) // 5) and len(values) > len(distinct)
