"""Sequence classification (one label, several labels, or regression) and multiple choice.

The model has a linear layer on the pooled state: Devlin et al. 2018 (arXiv 1810.04805), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.batches import TokenBatch
from quatrain.models.transformer.heads import label_loss
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, check_head, config_of, correct, forward, labels_tensor
from quatrain.training.objectives.labels import LabelledObjective
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, refuse

PROBLEM_TYPES = ("single_label", "multi_label", "regression")


class SequenceClassification(LabelledObjective):
    """Texts or pairs of texts with labels; `labels` are the model's label names, in its order.

    A record has `text`, for a pair also `text_pair`, and its labels, by `problem_type`:

    | problem_type | field | loss of a text |
    |---|---|---|
    | `single_label` | `label`: a name | cross-entropy |
    | `multi_label` | `labels`: a list of names, which may be empty | mean binary cross-entropy |
    | `regression` | `label`: a number, or one number per output | squared error |

    For numbers as labels see `quatrain.training.objectives.labels`. The weight of the loss is the number of texts.
    """

    head = "sequence_classification"

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        problem_type: str = "single_label",
        max_length: int | None = None,
        numbered: bool = False,
    ):
        super().__init__(tokenizer, labels, max_length=max_length, numbered=numbered)
        if problem_type not in PROBLEM_TYPES:
            refuse(
                [f"problem_type: {problem_type!r}; must be one of {', '.join(PROBLEM_TYPES)}"], "SequenceClassification"
            )
        self.problem_type = problem_type

    @property
    def label_field(self) -> str | None:
        return {"single_label": "label", "multi_label": "labels"}.get(self.problem_type)

    def encode(self, record: Any, place: str = "this example") -> list[EncodedText]:
        """One example. Raises InputError that names the missing or wrong fields."""
        fields = FieldReader(record, place)
        text, other = fields.text("text"), fields.optional_text("text_pair")
        label = {"single_label": self._one, "multi_label": self._several, "regression": self._numbers}[
            self.problem_type
        ](fields)
        fields.check()
        return [replace(self.read(text, other), label=label)]

    def _one(self, fields: FieldReader) -> int:
        value = fields.raw("label")
        return next(iter(self.indices(fields, [] if value is None else [value], "label")), 0)

    def _several(self, fields: FieldReader) -> list[float]:
        value = fields.raw("labels")
        if value is None:
            return []
        if isinstance(value, str) or not isinstance(value, Sequence):
            fields.fault(f"labels: {format_value(value)}; must be a list of label names")
            return []
        present = set(self.indices(fields, value, "labels"))
        return [float(index in present) for index in range(len(self.labels))]

    def _numbers(self, fields: FieldReader) -> list[float]:
        value = fields.raw("label")
        if value is None:
            return []
        values = list(value) if isinstance(value, list | tuple) else [value]
        try:
            numbers = [float(each) for each in values if not isinstance(each, bool)]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != len(self.labels) or not all(-1e30 < each < 1e30 for each in numbers):
            count = len(self.labels)
            fields.fault(f"label: {format_value(value)}; must be {'a number' if count == 1 else f'{count} numbers'}")
        return numbers

    def describe_target(self, example: EncodedText) -> str:
        if self.problem_type == "single_label":
            return f"label: {self.labels[example.label]}"
        values = list(zip(self.labels, example.label, strict=True))
        if self.problem_type == "multi_label":
            return f"labels: {', '.join(label for label, value in values if value) or 'none'}"
        return ", ".join(f"{label}: {value:.4g}" for label, value in values)

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Texts (B, T) with labels (B), or (B, L) for several labels and for regression."""
        rows: list[EncodedText] = self.encoded(examples)
        return self.batch(
            rows, labels_tensor([row.label for row in rows], floating=self.problem_type != "single_label")
        )

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The loss summed over the texts, and their number; with `single_label` also the number of correct texts."""
        problem_type = config_of(model).problem_type
        if config_of(model).head == self.head and problem_type != self.problem_type:
            raise InputError(
                f"problem_type: the model has {problem_type}, the objective {self.problem_type}. "
                f"Load the model with problem_type={self.problem_type!r}."
            )
        logits, loss = self.forward(model, batch, batch.labels)
        metrics: dict[str, float | Tensor] = {}
        if self.problem_type == "single_label":
            metrics["accuracy"] = correct(logits, batch.labels)
        return loss.sum(), len(batch.labels), metrics

    def references(self, examples: Sequence[EncodedText]) -> list[Any] | None:
        """What `predict` should give for each text; None for a regression with several numbers."""
        labels = [example.label for example in examples]
        if self.problem_type == "single_label":
            return labels
        if self.problem_type == "multi_label":
            return [[index for index, present in enumerate(row) if present] for row in labels]
        return [row[0] for row in labels] if len(self.labels) == 1 else None

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[Any]:
        """For each text the index of its label, the indices of labels with probability above 0.5, or its numbers."""
        logits = self.forward(model, batch)[0].float()
        if self.problem_type == "single_label":
            return logits.argmax(-1).tolist()
        if self.problem_type == "multi_label":
            return [[index for index, present in enumerate(row) if present] for row in (logits > 0).tolist()]
        return (logits[:, 0] if logits.shape[1] == 1 else logits).tolist()


@dataclass(frozen=True)
class ChoiceExample:
    """The encoded choices of one question, and the index of the correct one."""

    choices: list[EncodedText]
    label: int
    cut: int = 0

    def __len__(self) -> int:
        """Tokens of all rows of the example, padding included."""
        return len(self.choices) * max(map(len, self.choices))


@dataclass(frozen=True)
class ChoiceBatch(TokenBatch):
    """Questions with choices: `input_ids` (B, C, T); `absent` (B, C) is true where a question has fewer than C."""

    absent: Tensor | None = None


class MultipleChoice(TextObjective):
    """Questions with several choices. The model scores each pair of question and choice; the highest score wins.

    A record has `question`, `choices` (a list of texts) and `label`, the correct choice as a 0-based index or a letter.
    The loss is the cross-entropy over the choices of a question; its weight is the number of questions.
    """

    head = "multiple_choice"

    def encode(self, record: Any, place: str = "this example") -> list[ChoiceExample]:
        """One example. Raises InputError that names the missing or wrong fields."""
        fields = FieldReader(record, place)
        question, choices, label = fields.text("question"), fields.texts("choices", least=2), fields.raw("label")
        if isinstance(label, str) and len(label) == 1 and label.isalpha():
            label = ord(label.upper()) - ord("A")
        valid = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices)
        if not valid and not fields.problems:
            fields.fault(f"label: {format_value(label)}; must be from 0 to {len(choices) - 1}, or a letter from A on")
        fields.check()
        rows = [self.read(question, choice) for choice in choices]
        return [ChoiceExample(rows, int(label), cut=sum(row.cut for row in rows))]

    def describe_target(self, example: ChoiceExample) -> str:
        return f"right: choice {example.label + 1} of {len(example.choices)}"

    def collate(self, examples: Sequence[Any]) -> ChoiceBatch:
        """Questions (B, C, T) with labels (B). Missing choices repeat the first one and are excluded by `absent`."""
        questions: list[ChoiceExample] = self.encoded(examples)
        most = max(len(question.choices) for question in questions)
        rows = [text for each in questions for text in each.choices + each.choices[:1] * (most - len(each.choices))]
        flat = self.batch(rows, None)
        absent = torch.tensor([[place >= len(each.choices) for place in range(most)] for each in questions])
        shape = (len(questions), most, flat.input_ids.shape[1])
        return ChoiceBatch.of(
            flat.input_ids.view(shape),
            labels_tensor([each.label for each in questions]),
            segments=None if flat.segments is None else flat.segments.view(shape),
            token_types=None if flat.token_types is None else flat.token_types.view(shape),
            absent=absent if bool(absent.any()) else None,
        )

    def _scores(self, model: Any, batch: ChoiceBatch) -> Tensor:
        check_head(model, self.head)
        scores = forward(model, batch)[0].float()
        return scores if batch.absent is None else scores.masked_fill(batch.absent, -torch.inf)

    def loss(self, model: Any, batch: ChoiceBatch) -> Loss:
        """The loss summed over the questions, their number, and the number of correct answers."""
        scores = self._scores(model, batch)
        loss = label_loss(scores, batch.labels, "single_label")
        return loss.sum(), len(batch.labels), {"accuracy": correct(scores, batch.labels)}

    def references(self, examples: Sequence[ChoiceExample]) -> list[int]:
        """The index of the correct choice of each question."""
        return [example.label for example in examples]

    @torch.no_grad()
    def predict(self, model: Any, batch: ChoiceBatch) -> list[int]:
        """The index of the chosen answer, for each question."""
        return self._scores(model, batch).argmax(-1).tolist()
