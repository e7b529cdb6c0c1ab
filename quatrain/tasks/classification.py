"""Classes of texts, numbers for texts, and the best of several choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.data.corpus import Corpus
from quatrain.data.records import Row
from quatrain.tasks.records import LabelTask, RecordTask, most_frequent, text_pair, words_of
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import MultipleChoice, SequenceClassification
from quatrain.training.settings import TaskSettings

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SCORE = ("score",)
"""The name of the number that `regress` predicts."""


class Classification(LabelTask):
    """The class of a text or of a pair of texts."""

    name = "classify"
    format = "labelled"
    head = "sequence_classification"
    baseline_name = "the most frequent class"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> SequenceClassification:
        return SequenceClassification(tokenizer, labels, max_length=limit, numbered=bool(settings.labels))

    @classmethod
    def head_options(cls, labels: Sequence[str]) -> dict[str, Any]:
        return {"labels": tuple(labels), "problem_type": "single_label"}

    def question(self, example: Row) -> str:
        return text_pair(example)

    def reference(self, example: Row) -> str:
        return self.name_of(example.value["label"])

    def parse(self, completion: str) -> int:
        labels = self.objective.labels
        return labels.index(completion) if completion in labels else -1

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        return str(self.objective.labels[int(predictions[0])])

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The class that the training examples have most often."""
        return [most_frequent(map(self.reference, self.counted(examples)))] * len(examples)


class Regression(RecordTask):
    """A number for a text or a pair of texts."""

    name = "regress"
    format = "labelled"
    head = "sequence_classification"
    baseline_name = "the number of words"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> SequenceClassification:
        numbered = bool(settings.labels)
        return SequenceClassification(tokenizer, labels, problem_type="regression", max_length=limit, numbered=numbered)

    @classmethod
    def labels(cls, settings: TaskSettings, corpus: Corpus) -> tuple[str, ...]:
        return SCORE

    @classmethod
    def model_labels(cls, labels: Sequence[str]) -> tuple[str, ...]:
        return SCORE

    @classmethod
    def head_options(cls, labels: Sequence[str]) -> dict[str, Any]:
        return {"labels": tuple(labels), "problem_type": "regression"}

    def question(self, example: Row) -> str:
        return text_pair(example)

    def reference(self, example: Row) -> str:
        return str(example.value["label"])

    def parse(self, completion: str) -> float:
        return float(completion)

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """How many words each text has."""
        return [str(len(words_of(text_pair(example)))) for example in examples]


class BestChoice(RecordTask):
    """The right one of several choices, named by its letter."""

    name = "choice"
    format = "choice"
    head = "multiple_choice"
    exact = True
    baseline_name = "the place that is right most often"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> MultipleChoice:
        return MultipleChoice(tokenizer, max_length=limit)

    def question(self, example: Row) -> str:
        pairs = zip(LETTERS, example.value["choices"], strict=False)
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in pairs)
        return f"{example.value['question']}\n{choices}"

    def reference(self, example: Row) -> str:
        return LETTERS[example.value["label"]]

    def parse(self, completion: str) -> int:
        return LETTERS.find(completion)

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        return LETTERS[int(predictions[0])]

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The letter that is right most often among the training examples."""
        return [most_frequent(map(self.reference, self.counted(examples)))] * len(examples)
