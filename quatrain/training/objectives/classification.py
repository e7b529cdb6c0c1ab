"""Labels of whole texts and of pairs: one, several at once, or numbers; and the best of several choices.

Devlin et al. 2018 (arXiv 1810.04805), section 4: a linear layer on the pooled state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch
from quatrain.models.transformer.heads import label_loss
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, call, check_head, labels_tensor
from quatrain.training.objectives.labels import check_set, label_index, values_of, with_labels
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, label_names, refuse, shown

PROBLEMS = ("single", "several", "regression")


class SequenceClassification(TextObjective):
    """Texts, or pairs of texts, with a label; `labels` are the model's, in its order.

    A record has `text`, for a pair also `text_pair`, and `label`: with the problem `single` a name, with
    `several` `labels`, a list of those that hold (it may be empty), with `regression` a number, or one for each output.
    Whole numbers are places of labels where none is called so (`quatrain.training.objectives.labels`); with `numbered`,
    numbers written as text are too.
    The loss is the cross-entropy, the mean of the binary ones, or the squared error; its weight the number of texts.
    """

    head = "sequence_classification"

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        problem: str = "single",
        max_length: int | None = None,
        numbered: bool = False,
    ):
        super().__init__(tokenizer, max_length=max_length)
        self.numbered = numbered
        if problem not in PROBLEMS:
            refuse([f"problem: {problem!r}; must be one of {', '.join(PROBLEMS)}"], "SequenceClassification")
        self.labels, self.problem = label_names(labels, "SequenceClassification"), problem

    def encode(self, record: Any, place: str = "this example") -> list[EncodedText]:
        """One example. Raises InputError naming the fields that are missing or wrong."""
        fields = FieldReader(record, place)
        text, other = fields.text("text"), fields.optional_text("text_pair")
        label = {"single": self._one, "several": self._several, "regression": self._numbers}[self.problem](fields)
        fields.check()
        return [replace(self.read(text, other), label=label)]

    def prepare(self, records: Iterable[Any]) -> tuple[list[Any], list[str]]:
        """As of every objective; the labels of all records are looked at together, and named where some are unknown."""
        kept = list(records)
        if self.problem == "regression":
            return super().prepare(kept)
        name = "label" if self.problem == "single" else "labels"
        found = check_set((values_of(record, name) for record in kept), self.labels, self.numbered)
        return with_labels(lambda: super(SequenceClassification, self).prepare(kept), found)

    def name_of(self, value: Any) -> str:
        """The model's name of a record's label."""
        place = label_index(value, self.labels, numbered=self.numbered)
        return str(value) if isinstance(place, str) else self.labels[place]

    def _one(self, fields: FieldReader) -> int:
        value = fields.raw("label")
        if value is None:
            return 0
        found = label_index(value, self.labels, numbered=self.numbered)
        if isinstance(found, str):
            fields.fault(f"label: {found}")
            return 0
        return found

    def _several(self, fields: FieldReader) -> list[float]:
        value = fields.raw("labels")
        held = [0.0] * len(self.labels)
        if value is None:
            return held
        if isinstance(value, str) or not isinstance(value, Sequence):
            fields.fault(f"labels: {shown(value)}; must be a list of those that hold")
            return held
        for each in value:
            found = label_index(each, self.labels, numbered=self.numbered)
            if isinstance(found, str):
                fields.fault(f"labels: {found}")
            else:
                held[found] = 1.0
        return held

    def _numbers(self, fields: FieldReader) -> list[float]:
        value = fields.raw("label")
        if value is None:
            return []
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        try:
            found = [float(each) for each in numbers if not isinstance(each, bool)]
        except (TypeError, ValueError):
            found = []
        if len(found) != len(self.labels) or not all(-1e30 < each < 1e30 for each in found):
            count = len(self.labels)
            fields.fault(f"label: {shown(value)}; must be {'a number' if count == 1 else f'{count} numbers'}")
        return found

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Texts (B, T) with labels (B), or (B, L) for several labels and for numbers."""
        rows: list[EncodedText] = self.encoded(examples)
        return self.batch(rows, labels_tensor([row.label for row in rows], floating=self.problem != "single"))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The sum over the texts and their number; with one label a text also how many are right."""
        config = check_head(model, self.head, labels=self.labels)
        if config.problem != self.problem:
            raise InputError(
                f"problem: the model's is {config.problem}, the objective's {self.problem}. "
                f"Load the model with problem={self.problem!r}."
            )
        logits, loss = call(model, batch, batch.labels)
        metrics: dict[str, float | Tensor] = {}
        if self.problem == "single":
            metrics["accuracy"] = (logits.detach().argmax(-1) == batch.labels).sum()
        return loss.sum(), len(batch.labels), metrics

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[Any]:
        """For each text its label's number, the list of those with a probability above one half, or its numbers."""
        check_head(model, self.head, labels=self.labels)
        logits = call(model, batch)[0].float()
        if self.problem == "single":
            return logits.argmax(-1).tolist()
        if self.problem == "several":
            return [[number for number, held in enumerate(row) if held] for row in (logits > 0).tolist()]
        return (logits[:, 0] if logits.shape[1] == 1 else logits).tolist()


@dataclass(frozen=True)
class ChoiceExample:
    """The choices of one question, each as the model reads it, and the number of the right one."""

    choices: list[EncodedText]
    label: int
    cut: int = 0

    def __len__(self) -> int:
        """Tokens of all rows that the example becomes."""
        return len(self.choices) * max(map(len, self.choices))


@dataclass(frozen=True)
class ChoiceBatch(TokenBatch):
    """Questions with choices: `input_ids` (B, C, T); `absent` (B, C) is true where a question has fewer than C."""

    absent: Tensor | None = None


class MultipleChoice(TextObjective):
    """A question with several choices, each read as a pair with it; the one with the highest score is chosen.

    A record has `question`, `choices` (a list of texts) and `label`, the number of the right one from 0, or its letter.
    The loss is the cross-entropy over a question's own choices; the weight the number of questions.
    """

    head = "multiple_choice"

    def encode(self, record: Any, place: str = "this example") -> list[ChoiceExample]:
        """One example. Raises InputError naming the fields that are missing or wrong."""
        fields = FieldReader(record, place)
        question, choices, label = fields.text("question"), fields.texts("choices", least=2), fields.raw("label")
        if isinstance(label, str) and len(label) == 1 and label.isalpha():
            label = ord(label.upper()) - ord("A")
        right = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices)
        if not right and not fields.problems:
            fields.fault(f"label: {shown(label)}; must be a number from 0 to {len(choices) - 1}, or a letter from A on")
        fields.check()
        rows = [self.read(question, choice) for choice in choices]
        return [ChoiceExample(rows, int(label), cut=sum(row.cut for row in rows))]

    def collate(self, examples: Sequence[Any]) -> ChoiceBatch:
        """Questions (B, C, T) with labels (B); where one has fewer choices its first is repeated and does not count."""
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
        scores = call(model, batch)[0].float()
        return scores if batch.absent is None else scores.masked_fill(batch.absent, -torch.inf)

    def loss(self, model: Any, batch: ChoiceBatch) -> Loss:
        """The sum over the questions, their number, and how many are right."""
        scores = self._scores(model, batch)
        loss = label_loss(scores, batch.labels, "single")
        return loss.sum(), len(batch.labels), {"accuracy": (scores.detach().argmax(-1) == batch.labels).sum()}

    @torch.no_grad()
    def predict(self, model: Any, batch: ChoiceBatch) -> list[int]:
        """The number of the chosen one, for each question."""
        return self._scores(model, batch).argmax(-1).tolist()
