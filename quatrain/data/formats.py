"""Data formats and their detection: which format a row has, and which column plays which role in it.

A `Layout` is a format with the column of each role. It is detected from the column names, which are those of public
data sets (GLUE, SQuAD, CoNLL, MMLU, Alpaca, ShareGPT, …), or given by the user. Tables without a header are detected
from the values of their first rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean


@dataclass(frozen=True)
class Format:
    """One data format.

    `noun` names its rows in messages, in the plural. `roles` are the names under which a user assigns columns; those
    that end in "?" are optional. `required` lists the sets of roles of which one must be assigned. `varies`: each row
    may have its own fields, so that columns need not be known before a row is read.
    """

    noun: str
    roles: tuple[str, ...]
    required: tuple[frozenset[str], ...]
    varies: bool = False

    def accepts(self, roles: set[str]) -> bool:
        """Whether columns assigned to these roles are enough for the format, and none of them is foreign to it."""
        return roles <= {role.rstrip("?") for role in self.roles} and any(names <= roles for names in self.required)


def _format(noun: str, roles: str, *required: str, varies: bool = False) -> Format:
    return Format(noun, tuple(roles.split()), tuple(frozenset(names.split()) for names in required), varies)


FORMATS: dict[str, Format] = {
    "text": _format("documents", "text", "text"),
    "lines": _format("lines", "text"),
    "chat": _format(
        "conversations",
        "messages prompt completion instruction input? output",
        *("messages", "prompt completion", "instruction output"),
        varies=True,
    ),
    "prompts": _format("prompts", "turns prompt instruction", "turns", "prompt", "instruction", varies=True),
    "preference": _format("preference pairs", "prompt chosen rejected", "chosen rejected", varies=True),
    "rated": _format("rated answers", "prompt completion label", "prompt completion label", varies=True),
    "labelled": _format("labelled texts", "text other? label score", "text label", "text score"),
    "tagged": _format("tagged words", "words tags", "tags"),
    "qa": _format("questions about texts", "context question answers starts? id?", "context question answers"),
    "choice": _format("multiple-choice questions", "question choices label", "question choices label"),
    "pair": _format("pairs of texts", "source target", "source target"),
    "sql": _format("questions with SQL", "question query database?", "question query"),
}
"""Every data format by name. `quatrain.data.convert` has a converter for the rows of each."""

CHAT_EXTRAS = ("system", "tools", "functions", "documents")
"""Columns that belong to a conversation in addition to its messages."""

CHAT_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))

ANSWER_LISTS = ("answers", "completions", "responses", "outputs")
"""Columns that hold several answers to one prompt, as texts or objects."""

_ANSWER_ORDERS = ("scores", "ranks", "ranking", "choice")

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
    *(column for parts in _CHOICES for columns in parts.values() for column in columns.split(",")),
    *(*_TEXTS, *_SCORES, *_LABELS, *_QUERIES[:1], *_DATABASES, *_WORDS, *_TAGS, *_CONTEXTS, *_ANSWERS),
    *("messages", "conversations", "instruction", "output", "instances", "turns", "chosen", "rejected"),
)
"""The column names in the spelling of public data sets."""

_LANGUAGES = {
    *"ar bg bn cs da de el en es et fa fi fr he hi hr hu it ja ko lt lv nl pl pt ro ru sk sl sv th tr uk vi zh"
    .split(),
    *"eng fra deu spa ita por rus english french german spanish italian portuguese russian chinese dutch".split(),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A format, the column of each role (`parts`), and whether its labels are scores for regression.

    A role that takes several columns, such as the choices of a question, has their names separated by commas.
    """

    format: str
    parts: Mapping[str, str] = field(default_factory=dict)
    scores: bool = False

    def describe(self) -> str:
        """For messages: "labelled texts (text: sentence, label: label)"."""
        columns = ", ".join(f"{part}: {column}" for part, column in self.parts.items())
        return FORMATS[self.format].noun + (f" ({columns})" if columns else "")


def detect_layout(
    rows: Sequence[Any], *, columns: Mapping[str, str] | None = None, format: str | None = None
) -> Layout | None:
    """The layout of a file, detected from its first rows; None if their columns match no format.

    `columns` are the user's, by role. Raises InputError if no format has these roles together.
    """
    rows = [row for row in rows if isinstance(row, Mapping)]
    names = dict.fromkeys(name for row in rows[:8] for name in row)
    if columns:
        layout = layout_from_columns(columns, format)
        if layout.format == "tagged" and "words" not in layout.parts:
            words = next((name for name in _WORDS if name in names), next(iter(names), "1"))
            layout = Layout("tagged", {"words": words, **layout.parts})
        return _with_scores(layout, rows)
    if not rows:
        return None
    for layout in _layouts(list(names)):
        if format is None or layout.format == format:
            return _with_scores(layout, rows)
    if not all(name.isdigit() for name in names):
        return None
    if any(isinstance(value, list) for value in rows[0].values()):
        # CoNLL: the first column has the words, the last one the tags (Tjong Kim Sang and De Meulder 2003).
        first, *_, last = names
        return Layout("tagged", {"words": first, "tags": last}) if format in (None, "tagged") else None
    if format in (None, "labelled", "pair", "text"):
        return _without_header(rows, list(names), format)
    return None


def _candidates(names: list[str]) -> Iterator[Layout]:
    """The possible layouts of columns with exactly these names, most likely first."""
    has = set(names)
    if _is_preference(has):
        yield Layout("preference")
    if {"prompt", "completion", "label"} <= has:
        yield Layout("rated")
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


def _is_preference(has: set[str]) -> bool:
    """Whether the columns are those of pairs, of judged or of ranked answers."""
    ranked = any(answers in has and {"prompt", order} <= has for answers in ANSWER_LISTS for order in _ANSWER_ORDERS)
    known = (
        {"chosen", "rejected"},
        {"instruction", "output_1", "output_2", "preference"},
        {"history", "human_ref_A", "human_ref_B", "labels"},
        {"instruction", "completions"},
    )
    return ranked or any(names <= has for names in known)


def _layouts(names: list[str]) -> Iterator[Layout]:
    """The possible layouts: exact names first, then spelling variants and synonyms, then one-column formats."""
    exact = list(_candidates(names))
    yield from (layout for layout in exact if layout.format not in ("text", "prompts"))
    yield from _spelling_variants(names)
    yield from (layout for layout in exact if layout.format in ("text", "prompts"))


def has_known_columns(names: Sequence[str]) -> bool:
    """Whether columns with these names match a format."""
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
"""Synonyms for the column names of labelled texts."""


def _plain_name(name: str) -> str:
    """A column name in lower case, without spaces, hyphens, underscores, dots and byte order marks."""
    return re.sub(r"[\s\-_.\ufeff]+", "", name).casefold()


def _synonym(name: str) -> str:
    plain = _plain_name(name)
    return next((known for known, others in _SYNONYMS.items() if plain in map(_plain_name, others)), plain)


def _spelling_variants(names: list[str]) -> Iterator[Layout]:
    """The layouts of columns whose names differ from the known ones in case, spaces or hyphens, or are synonyms in
    labelled texts. There is none if two columns have the same meaning.
    """
    known = {_plain_name(name): name for name in _EXACT}
    for meaning in (_plain_name, _synonym):
        exact = {known.get(plain, plain): name for name in names for plain in [meaning(name)]}
        if len(exact) == len(names) and list(exact) != names:
            layouts = (_with_file_names(layout, exact) for layout in _candidates(list(exact)))
            yield from (layout for layout in layouts if meaning is _plain_name or layout.format == "labelled")


def _with_file_names(layout: Layout, exact: Mapping[str, str]) -> Layout:
    """The layout with the columns as the file spells them; `exact` maps known names to these."""
    parts = dict(layout.parts)
    if layout.format == "chat":
        parts = {name: name for name in ("messages", "instruction", "input", "output", *CHAT_EXTRAS) if name in exact}
        pair = next((pair for pair in CHAT_PAIRS if {*pair} <= set(exact)), None)
        if "conversations" in exact:
            parts = {name: name for name in parts if name in CHAT_EXTRAS} | {"messages": "conversations"}
        elif pair is not None and not {"messages", "instruction"} & set(parts):
            parts = {name: name for name in parts if name in CHAT_EXTRAS} | {"prompt": pair[0], "completion": pair[1]}
    elif layout.format in ("preference", "rated"):
        parts = {name: name for name in FORMATS[layout.format].roles if name in exact}
    columns = {part: ",".join(exact[name] for name in column.split(",")) for part, column in parts.items()}
    return Layout(layout.format, columns)


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
            # A question with its answer is a conversation, not a text with a label.
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
    """The columns of a format's inputs by role, without the label, tags or target that a model is to predict.

    For `text`, a pair of texts is `text` and `other`, and a single column is the text. {} if no names match.
    """
    inputs: dict[str, tuple[dict[str, str], ...]] = {
        "tagged": tuple({"words": name} for name in _WORDS),
        "qa": tuple({"context": name, "question": "question"} for name in _CONTEXTS),
        "choice": tuple({part: column for part, column in parts.items() if part != "label"} for parts in _CHOICES),
        "pair": tuple({"source": source} for source, _ in _PAIRS),
    }
    texts = (*({"text": text, "other": other} for text, other in _TEXT_PAIRS), *({"text": name} for name in _TEXTS))
    choices = (*inputs.get(format, ()), *(texts if format in ("text", "tagged") else ()))
    known = {_plain_name(name): name for name in _EXACT}
    for meaning in (str, _plain_name, _synonym):
        exact = {known.get(plain, plain): name for name in names for plain in [meaning(name)]}
        for parts in choices:
            if all(column in exact for columns in parts.values() for column in columns.split(",")):
                return {part: ",".join(exact[name] for name in column.split(",")) for part, column in parts.items()}
    return {"text": names[0]} if format == "text" and len(names) == 1 else {}


def layout_from_columns(columns: Mapping[str, str], format: str | None = None) -> Layout:
    """The layout with the columns that a user assigned to roles. Raises InputError if no format has these roles."""
    candidates = FORMATS if format is None else {format: FORMATS[format]}
    for name, candidate in candidates.items():
        if candidate.accepts(set(columns)):
            return Layout(name, dict(columns))
    known = dict.fromkeys(role.rstrip("?") for format_ in FORMATS.values() for role in format_.roles)
    problems = []
    for part in columns:
        if part not in known:
            problems.append(f"columns.{part}: not a role of any format{did_you_mean(part, list(known))}")
    if not problems:
        which = f"the format {format} does not have" if format else "no format has"
        problems.append(f"columns: {which} the roles {', '.join(columns)} together")
    sets = "; ".join(f"{name}: {', '.join(candidate.roles)}" for name, candidate in candidates.items())
    what = "data.columns match no format. The roles of each format (? is optional)"
    raise InputError(f"{what}: {sets}", problems)


def _with_scores(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> Layout:
    """Marks labels as scores if their column is called so, or if they are numbers and not all of them integers."""
    if layout.format != "labelled":
        return layout
    if "score" in layout.parts:
        rest = {part: column for part, column in layout.parts.items() if part != "score"}
        return Layout(layout.format, rest | {"label": layout.parts["score"]}, scores=True)
    values = [row.get(layout.parts["label"]) for row in rows]
    return Layout(layout.format, layout.parts, scores=look_like_scores(values))


def look_like_scores(values: Sequence[Any]) -> bool:
    """Whether labels are numbers, not all of them integers."""
    if not values or any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        return False
    numbers = [as_number(value) for value in values]
    whole = (isinstance(value, int) or (isinstance(value, str) and "." not in value) for value in values)
    return None not in numbers and not all(whole)


def as_number(value: Any) -> float | None:
    """A number or a text as a finite float; None if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _without_header(rows: Sequence[Mapping[str, Any]], names: list[str], format: str | None) -> Layout | None:
    """The layout of a table without header: short, few and repeated values are labels, two other columns a pair."""
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
