"""A tag for each word: parts of speech, named entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from quatrain.data.corpus import Corpus
from quatrain.data.records import Row
from quatrain.tasks.records import RecordTask
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import TokenClassification
from quatrain.training.settings import TaskSettings


class Tagging(RecordTask):
    """Sentences with a tag for each word; a completion is the tags with spaces between."""

    name = "tag"
    format = "tagged"
    head = "token_classification"
    exact = True
    baseline_name = "the most frequent tag"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> TokenClassification:
        stride, numbered = settings.stride or 0, bool(settings.labels)
        return TokenClassification(tokenizer, labels, max_length=limit, stride=stride, numbered=numbered)

    @classmethod
    def labels(cls, settings: TaskSettings, corpus: Corpus) -> tuple[str, ...]:
        return tuple(settings.labels) or tuple(corpus.labels())

    def question(self, example: Row) -> str:
        return " ".join(example.value["words"])

    def reference(self, example: Row) -> str:
        return " ".join(self._tags(example))

    def _tags(self, example: Row) -> list[str]:
        return [str(self.objective.name_of(tag)) for tag in example.value["tags"]]

    def parse(self, completion: str) -> list[str]:
        return completion.split(" ")

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        return " ".join(self.objective.predictions(examples, predictions)[0])

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The tag that the words of the training examples have most often."""
        ((tag, _),) = Counter(tag for example in self.counted(examples) for tag in self._tags(example)).most_common(1)
        return [" ".join([tag] * len(example.value["words"])) for example in examples]
