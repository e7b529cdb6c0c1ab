"""Questions to databases, answered with SQL that is executed.

Execution accuracy: the rows of the model's statement are those of the reference (Yu et al. 2018, arXiv 1809.08887). The
same statements are counted as text too, which calls right ones wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.corpus import DataParts
from quatrain.data.records import Row
from quatrain.data.settings import source_settings
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, WritingSuite, by_group
from quatrain.tasks.task import Score, SourceTask, source_task


class TextToSql(WritingSuite):
    """Execution accuracy, and exact match, of SQL."""

    name = "text2sql"
    title = "questions to databases, by executing the SQL"
    paper = "Yu et al. 2018, arXiv 1809.08887"
    data = "geoquery-new-questions"
    columns = "the columns question and query (and db_id), with their databases"
    default_new_tokens = 120
    extra = ("databases",)

    def __init__(self, source: str | None = None, *, databases: str | None = None, **options: Any):
        super().__init__(source, **options)
        self.databases = databases
        self._task: SourceTask[Any] | None = None

    @property
    def task(self) -> SourceTask[Any]:
        """The task over the source."""
        if self._task is None:
            self._task = source_task(DataParts(source_settings(str(self.source), self.databases)))
            if self._task is None:
                raise InputError(f"{self.source} has no questions with SQL: text2sql takes {self.columns}")
        return self._task

    def close(self) -> None:
        if self._task is not None:
            self._task.close()

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"databases": self.databases}

    def parse(self, value: Mapping[str, Any]) -> Any:
        return value

    def read(self, limit: int | None = None) -> list[Row]:
        examples = list(islice(self.task.take(limit), limit))
        kept, notes = self.task.judgeable(examples)
        self.notes = [*self.task.notes, *notes]
        return [Row(self.task.place(example), example) for example in kept]

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        task, chat = self.task, self.asks_by_chat(subject)
        subject.check([task.prompt(row.value) if chat else task.text_prompt(row.value) for row in rows], (), 1)

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        params, as_text = self.params(subject), not self.asks_by_chat(subject)
        written = subject.complete(self.task, [row.value for row in rows], params, as_text=as_text)
        return [{"text": each.text, "tokens": each.tokens, "finished": each.finished} for each in written]

    def prompt_text(self, row: Row) -> str:
        return "\n".join(str(message["content"]) for message in self.task.prompt(row.value))

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        scores = [self.task.score(row.value, output["text"]) for row, output in zip(rows, outputs, strict=True)]
        names = dict.fromkeys(name for score in scores for name in score.metrics)
        return [mean_of(name, [score.metrics.get(name, 0.0) for score in scores], _EXPLAINED.get(name, ""))
                for name in names]  # fmt: skip

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        kinds = [self.task.kind(row.value) for row in rows]
        right = [float(bool(self.correct(row, output))) for row, output in zip(rows, outputs, strict=True)]
        return {"by_group": by_group(kinds, right)} if any(kinds) else {}

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        texts = self.task.baseline([row.value for row in rows])
        return [Baseline(self.task.baseline_name, [{"text": text} for text in texts])]

    def correct(self, row: Row, output: Output) -> bool | None:
        return self.task.score(row.value, output["text"]).correct

    def score(self, example: Row, completion: str) -> Score:
        return self.task.score(example.value, completion)

    def shown(self, row: Row, output: Output) -> str:
        return self.task.answer(row.value, output["text"])

    def question(self, example: Row) -> str:
        return self.task.question(example.value)

    def reference(self, example: Row) -> str:
        return self.task.reference(example.value)


_EXPLAINED = {
    "execution_accuracy": "The rows of the statement are those of the reference.",
    "exact_match": "The statement equals the reference as text: a right statement in other words counts as wrong.",
    "valid": "The statement runs.",
}

SUITE = TextToSql
