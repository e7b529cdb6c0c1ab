"""A tag for each word: parts of speech, named entities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.data.records import Row
from quatrain.tasks.records import LabelTask, most_frequent
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import TokenClassification
from quatrain.training.settings import TaskSettings


class Tagging(LabelTask):
    """Sentences with a tag for each word; a completion is the tags with spaces between."""

    name = "tag"
    format = "tagged"
    head = "token_classification"
    baseline_name = "the most frequent tag"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> TokenClassification:
        stride, numbered = settings.stride or 0, bool(settings.labels)
        return TokenClassification(tokenizer, labels, max_length=limit, stride=stride, numbered=numbered)

    def question(self, example: Row) -> str:
        return " ".join(example.value["words"])

    def reference(self, example: Row) -> str:
        return " ".join(self._tags(example))

    def _tags(self, example: Row) -> list[str]:
        return [self.name_of(tag) for tag in example.value["tags"]]

    def parse(self, completion: str) -> list[str]:
        return completion.split(" ")

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        return " ".join(self.objective.predictions(examples, predictions)[0])

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The tag that the words of the training examples have most often."""
        tag = most_frequent(tag for example in self.counted(examples) for tag in self._tags(example))
        return [" ".join([tag] * len(example.value["words"])) for example in examples]
