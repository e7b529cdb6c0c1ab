"""The base of all pipelines: from inputs of any form to predictions, in batches and streams.

A pipeline is one file of this folder with one class. The class declares its task and other names of it, the heads of
models that it works with, the fields of its inputs and its options; `predict_batch` does the work. The outputs have the
shapes of Hugging Face's pipelines.
"""

from __future__ import annotations

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.reading import lone_surrogate
from quatrain.core.settings import Settings, parse
from quatrain.core.wording import format_names, format_value
from quatrain.tasks.pipelines.subject import Subject
from quatrain.training.objectives.base import forward
from quatrain.training.objectives.texts import EncodedText, TextObjective

BATCH = 32
"""Inputs of one batch."""


@dataclass(frozen=True)
class Field:
    """A field of an input. `part` is its name among `data.columns`, where that is another."""

    name: str
    optional: bool = False
    kind: Literal["text", "texts", "messages", "file", "any"] = "text"
    """A text, a list of texts, the messages of a chat, a file (its path, its content, or what it holds), or what the
    task checks itself."""
    empty: bool = True
    """Whether the text may be empty."""
    part: str = ""


@dataclass(frozen=True)
class Alias:
    """Another name of a task, with defaults of its options and the recipes that train a model for it."""

    options: Mapping[str, Any] = field(default_factory=dict)
    recipes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The output for one input, in Hugging Face's shape.

    `cut` is the number of tokens beyond the model's context, which were not read.
    """

    value: Any
    cut: int = 0


class Pipeline(ABC):
    """Predicts with a model of a suitable head and its tokenizer.

    Call it with one input, a list, or an iterator, which it streams. Options are set once, when the pipeline is made,
    or for a call. Raises InputError for a model without a tokenizer, and for options that the task does not have.
    """

    task: ClassVar[str]
    """Hugging Face's name of the task."""
    aliases: ClassVar[Mapping[str, Alias]] = {}
    """Other names of the task."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Heads of the models. Empty: every head."""
    default_for: ClassVar[tuple[str, ...]] = ()
    """Heads whose models this task is for where none is named."""
    reads: ClassVar[str] = ""
    """What its models read beside or instead of text: `Family.features`."""
    loads: ClassVar[Mapping[str, str]] = {}
    """Heads of folders that are loaded with another head: the folder's head -> the head in `heads`."""
    recipes: ClassVar[tuple[str, ...]] = ()
    """Recipes that train a model for the task, the usual one first."""
    fields: ClassVar[tuple[Field, ...]] = (Field("text"),)
    format: ClassVar[str] = "text"
    """The format of records by which columns of a file are recognized (`quatrain.data.formats`)."""
    Options: ClassVar[type[Settings]] = Settings
    reads_ahead: ClassVar[int] = 1
    """Batches of a list that `predict_batch` gets at once; their logits are in memory together."""

    needs_tokenizer: ClassVar[bool] = True
    """Whether the inputs or the outputs are texts."""

    def __init__(self, subject: Subject, *, name: str = "", batch_size: int = BATCH, **options: Any):
        if subject.tokenizer is None and self.needs_tokenizer:
            raise InputError("The model has no tokenizer: a text cannot be read without its tokens.")
        self.subject, self.model = subject, subject.model.eval()
        self.tokenizer: Any = subject.tokenizer
        self.name = name or self.task
        self.batch_size = self._rows_at_once = _checked_size(batch_size)
        defaults = self.named(self.name)
        self.defaults = {**(defaults or {}), **{key: value for key, value in options.items() if value is not None}}
        self.settings({})

    @classmethod
    def named(cls, name: str) -> Mapping[str, Any] | None:
        """The defaults of the options where `name` is a name of this task; None where it is not."""
        if name == cls.task:
            return {}
        return cls.aliases[name].options if name in cls.aliases else None

    @classmethod
    def recipes_of(cls, name: str) -> tuple[str, ...]:
        """The recipes that train a model for a name of this task."""
        return (cls.aliases[name].recipes if name in cls.aliases else ()) or cls.recipes

    @classmethod
    def required(cls, given: Mapping[str, Any]) -> Iterable[Field]:
        """The fields that an input with the fields of `given` must have."""
        return [each for each in cls.fields if not each.optional]

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.model.config

    @property
    def limit(self) -> int:
        """The longest text in tokens, special tokens included."""
        return int(self.config.context_length)

    @cached_property
    def processor(self) -> Any:
        """What prepares pictures or sound for the model. Raises InputError for a folder without its file."""
        if (found := self.subject.processor()) is None:
            raise InputError("The model has no preprocessor_config.json, which says how its inputs are prepared.")
        return found

    @cached_property
    def reader(self) -> TextObjective:
        """Encodes texts and pairs, cut to the model's context, and pads batches."""
        return TextObjective(self.tokenizer, max_length=self.limit)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The outputs of inputs: one for one input, a list for a list, an iterator for another iterable.

        `options` are those of the task, for this call alone. Raises InputError for wrong inputs and options. A warning
        names the texts that were cut to the model's context.
        """
        if self.is_one(inputs):
            (prediction,) = predictions = list(self.predict([inputs], batch_size=batch_size, **options))
            self._warn(predictions)
            return self.one(inputs, prediction.value)
        if isinstance(inputs, list | tuple):
            predictions = list(self.predict(inputs, batch_size=batch_size, **options))
            self._warn(predictions)
            return self.several([each.value for each in predictions])
        if isinstance(inputs, Iterable) and not isinstance(inputs, bytes):
            self.settings(options)
            return (each.value for each in self.predict(inputs, batch_size=batch_size, **options))
        raise InputError(
            f"{self.name}: {format_value(inputs)} is of type {type(inputs).__name__}; must be {self.described()}, or a "
            "list or an iterator of them"
        )

    def predict(self, inputs: Iterable[Any], *, batch_size: int | None = None, **options: Any) -> Iterator[Prediction]:
        """A prediction for each input, in order; inputs are read a batch at a time.

        Raises InputError, with the number of the input from 1, for one that cannot be read.
        """
        settings = self.settings(options)
        size = self.batch_size if batch_size is None else _checked_size(batch_size)
        # Of a list many batches are read ahead, so that texts of one length can share a batch.
        ahead = self.reads_ahead if isinstance(inputs, list | tuple) else 1
        rows = (self.read(each, f"input {number}") for number, each in enumerate(inputs, 1))
        while batch := list(itertools.islice(rows, size * ahead)):
            with torch.inference_mode():
                self._rows_at_once = size
                predictions = self.predict_batch(batch, settings)
            yield from predictions

    @abstractmethod
    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: Any) -> list[Prediction]:
        """The predictions for a batch of inputs, as `read` returns them."""

    def is_one(self, inputs: Any) -> bool:
        """Whether what a call was given is one input."""
        if isinstance(inputs, str | Mapping):
            return True
        return self.fields[0].kind == "file" and not isinstance(inputs, list | tuple | Iterator)

    def one(self, given: Any, value: Any) -> Any:
        """The output of a call with one input, `given`."""
        return value

    def several(self, values: list[Any]) -> Any:
        """The output of a call with a list of inputs."""
        return values

    def record(self, value: Any) -> dict[str, Any]:
        """An output as the fields of a JSON object, for files and programs."""
        return dict(value) if isinstance(value, Mapping) else {"output": value}

    def line(self, text: str, value: Any) -> str:
        """An output for people, in one line; `text` is the input."""
        return "\t".join(_shown(each) for each in self.record(value).values())

    def file_options(self) -> dict[str, Any]:
        """Defaults of options for `record` and `line`, which may show more than a call returns."""
        return {}

    def served(self, value: Any) -> Any:
        """An output in the form of Hugging Face's inference API, where that differs from the pipeline's."""
        return value

    def served_options(self) -> dict[str, Any]:
        """Defaults of options for `served`."""
        return {}

    def refusal(self, inputs: Any, parameters: Mapping[str, Any]) -> str:
        """Why a server must not answer this; "" where it may: it does not read its own files for whoever asks."""
        first = self.fields[0]
        if first.kind != "file":
            return ""
        one = [inputs] if self.is_one(inputs) else inputs
        values = [each.get(first.name) if isinstance(each, Mapping) else each for each in one]
        if all(isinstance(value, str) and value[:5].lower() == "data:" for value in values):
            return ""
        return f"{first.name}: a server does not read its own files; send a data URI (data:image/png;base64,…)."

    def settings(self, given: Mapping[str, Any]) -> Any:
        """The options of a call. Raises InputError, all problems at once, that names the options of the task."""
        values = {**self.defaults, **{name: value for name, value in given.items() if value is not None}}
        known = self.Options.model_fields
        unknown = [name for name in values if name not in known]
        more = [f"{name}: unknown; the options are {format_names(list(known), 40) or 'none'}" for name in unknown]
        return parse(
            self.Options,
            {name: value for name, value in values.items() if name in known},
            what=f"the options of {self.name}",
            more=more,
        )

    def read(self, given: Any, place: str) -> dict[str, Any]:
        """The fields of an input. Raises InputError, with its place, for missing fields and other types."""
        if isinstance(given, Mapping):
            fields = {each.name: given[each.name] for each in self.fields if given.get(each.name) is not None}
        elif isinstance(given, str) or self.fields[0].kind == "file":
            fields = {self.fields[0].name: given}
        else:
            raise InputError(f"{place}: {format_value(given)}; must be {self.described()}")
        required = {each.name for each in self.required(fields)}
        problems = []
        for each in self.fields:
            if each.name not in fields:
                if each.name in required:
                    problems.append(f"{each.name}: missing; give {self.described()}")
                continue
            problem = _problem(each, fields[each.name])
            if problem:
                problems.append(f"{each.name}: {problem}")
        if problems:
            raise InputError("; ".join(f"{place}: {problem}" for problem in problems))
        return fields

    @classmethod
    def described(cls) -> str:
        """The form of an input in words."""
        names = [each.name + ("?" if each.optional else "") for each in cls.fields]
        whole = "an object of " + ", ".join(names)
        if cls.fields[0].kind == "file":
            return f"a file, or {whole}"
        takes_text = cls.fields[0].kind == "text" and len(list(cls.required({}))) <= 1
        return f"a text, or {whole}" if takes_text else whole

    def logits(self, rows: Sequence[EncodedText]) -> list[Tensor]:
        """The logits of encoded texts in float32 on the CPU: (L) of each, or (T, L) for its own tokens.

        They are read by length, a batch at once. Raises InputError for a text without a token.
        """
        result: list[Tensor] = [torch.empty(0)] * len(rows)
        check_tokens(rows)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for start in range(0, len(rows), self._rows_at_once):
            places = order[start : start + self._rows_at_once]
            batch = self.reader.batch([rows[place] for place in places], None).to(self.model.device)
            logits = forward(self.model, batch)[0].float().cpu()
            for place, each in zip(places, logits, strict=True):
                result[place] = each[: len(rows[place])] if each.dim() > 1 else each
        return result

    def _warn(self, predictions: Sequence[Prediction]) -> None:
        cut = [each.cut for each in predictions if each.cut]
        if cut:
            warnings.warn(
                f"{len(cut):,} of {len(predictions):,} inputs exceed the model's context of {self.limit:,} tokens: "
                f"{sum(cut):,} tokens were not read",
                stacklevel=3,
            )


def check_tokens(rows: Sequence[EncodedText]) -> None:
    """Raises InputError for a text without a token: one that is empty, where the tokenizer adds no special tokens."""
    if empty := [number for number, row in enumerate(rows, 1) if not len(row)]:
        raise InputError(
            f"a text is empty (number {empty[0]} of its batch), and this model's tokenizer gives no token for it; "
            "leave it out"
        )


def _checked_size(size: Any) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"batch_size: {format_value(size)}; must be a whole number of at least 1")
    return size


def _problem(field: Field, value: Any) -> str:
    """What is wrong with the value of a field; "" for nothing."""
    if field.kind in ("any", "file"):
        return ""
    if field.kind == "messages":
        return "" if is_chat(value) else f"{format_value(value)}; must be a list of messages with role and content"
    if field.kind == "texts" and (isinstance(value, str) or not isinstance(value, Sequence) or not value):
        return f"{format_value(value)}; must be a list of at least one text"
    for text in value if field.kind == "texts" else [value]:
        if not isinstance(text, str):
            return f"{format_value(text)} is of type {type(text).__name__}; must be a text"
        if not field.empty and not text.strip():
            return "is empty; must contain text"
        if (fault := lone_surrogate(text)) is not None:
            return f"has {fault}"
    return ""


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(each, Mapping) and "role" in each for each in value)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
