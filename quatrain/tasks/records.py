"""Tasks whose examples are typed records, answered by a model with the head of the task or by an encoder-decoder.

A task names the format of its data (`quatrain.data.formats`), the head, and the training objective.
`quatrain.tasks.kinds` lists the tasks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from quatrain.core.errors import InputError
from quatrain.data.corpus import Corpus, DataParts
from quatrain.data.records import Fault, Pair, Row
from quatrain.tasks.task import DataTask, Score
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.settings import TaskSettings


class RecordTask(DataTask[Row]):
    """Records of one format, and the training objective that a model learns them by.

    Completions are texts. `parse` turns one into a prediction as the metrics take it: a label's number, a list of tags,
    a number, a text.
    """

    format: ClassVar[str | None]
    """The format of the records; None where there are several."""
    head: ClassVar[str]
    """The head of a model of this task, as `ModelConfig.head` names it."""
    related: ClassVar[bool] = False
    """Whether pairs of texts are texts that mean the same."""
    exact: ClassVar[bool] = False
    """Whether a sample is either right or wrong."""

    writes: ClassVar[bool] = False
    """Whether the model also answers with a text of its own, as an encoder-decoder does."""

    def __init__(self, objective: Any, data: DataParts | None = None, *, limit: int | None = None):
        super().__init__(data, limit=limit)
        self.objective = objective

    @classmethod
    def corpus(cls, data: DataParts, part: str = "source") -> Corpus:
        """A part of the data in the task's format. Raises InputError if the settings name another format."""
        format = data.settings.format
        if format is not None and cls.format is not None and format != cls.format:
            raise InputError(f"data.format: {format}; objective {cls.name} reads {cls.format}. Leave it out.")
        return data.corpus(part, format=cls.format)

    def read(self, data: DataParts, part: str) -> Iterator[Row]:
        return placed(self.corpus(data, part), related=self.related)

    def place(self, example: Row) -> str:
        return example.place

    def counted(self, examples: Sequence[Row]) -> Sequence[Row]:
        return [row for row in super().counted(examples) if row.fault is None]

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> Any:
        """The training objective, for data of this format and rows of at most `limit` tokens."""
        raise NotImplementedError(f"{cls.name} has no objective")

    @classmethod
    def labels(cls, settings: TaskSettings, corpus: Corpus) -> tuple[str, ...]:
        """The names of the model's labels, in order."""
        return ()

    @classmethod
    def model_labels(cls, labels: Sequence[str]) -> tuple[str, ...]:
        """The names of the labels of a model that has learned the task."""
        return tuple(labels)

    @classmethod
    def head_options(cls, labels: Sequence[str]) -> dict[str, Any]:
        """Fields of the model's configuration that the head needs."""
        return {"labels": tuple(labels)} if labels else {}

    def messages(self, example: Row) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": self.question(example)},
            {"role": "assistant", "content": self.reference(example)},
        ]

    def question(self, example: Row) -> str:
        raise NotImplementedError

    def reference(self, example: Row) -> str:
        raise NotImplementedError

    def references(self, example: Row) -> list[str]:
        """All right answers."""
        return [self.reference(example)]

    def score(self, example: Row, completion: str) -> Score:
        return Score({"accuracy": float(completion.strip() == self.reference(example))})

    def chance(self, batches: int, count: int) -> dict[str, float]:
        """The scores of a random choice among `count` examples in `batches`, for a task without another baseline."""
        return {}

    def parse(self, completion: str) -> Any:
        """A completion as the metrics take it."""
        return completion

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        """The model's prediction of one record as people read it."""
        return f"{float(predictions[0]):.3g}"


class LabelTask(RecordTask):
    """A task whose answers are names of a fixed set of labels: the classes of texts, the tags of words."""

    exact = True

    @classmethod
    def labels(cls, settings: TaskSettings, corpus: Corpus) -> tuple[str, ...]:
        return tuple(settings.labels) or tuple(corpus.labels())

    def name_of(self, label: str | int) -> str:
        """The name of a label, which the data may have as its index."""
        return str(self.objective.name_of(label))


def most_frequent(answers: Iterable[str]) -> str:
    """The most frequent of some answers, the first among equals."""
    return Counter(answers).most_common(1)[0][0]


def text_pair(record: Row) -> str:
    """The text of a labelled record, with the second text of a pair below it."""
    other = record.value.get("text_pair")
    return str(record.value["text"]) + (f"\n{other}" if other else "")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


def overlap(one: str, other: str) -> float:
    """The share of words that two texts have in common (Jaccard)."""
    first, second = set(words_of(one)), set(words_of(other))
    return len(first & second) / max(1, len(first | second))


def placed(corpus: Corpus, *, related: bool = False) -> Iterator[Row]:
    """The records of a corpus with their places, as objectives take them; rows that are none have a `fault`.

    With `related`, pairs of texts are texts that mean the same: an anchor and its positive.
    """
    for row in corpus.rows():
        try:
            records = corpus.convert(row)
        except Fault as fault:
            yield from (Row(row.place, fault=str(each)) for each in fault.all)
            continue
        for record in records:
            value: Any = record.fields()
            if related and isinstance(record, Pair):
                value = {"anchor": record.source, "positive": record.target}
            yield Row(row.place, value)
