"""Texts with classes: predicted by a model with a classification head, or by how likely their names are.

Beside the scores stand the most frequent class and the classic method: TF-IDF with logistic regression.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.evaluation.classics import tfidf_classifier
from quatrain.evaluation.measures import Measure, label_measures
from quatrain.evaluation.record_suite import RecordSuite
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, by_group
from quatrain.tasks.records import text_pair

NAMES = {"sst2": {"0": "negative", "1": "positive"}}
"""Words for the classes of a data set that has numbers."""


class TextClasses(RecordSuite):
    """Accuracy, and macro, micro and weighted F1 of classes."""

    name = "classification"
    title = "classes of texts"
    data = "sst2-test"
    task = "classify"
    columns = "a text and a label (JSONL, CSV, TSV), as for a stage with objective classify"

    def label(self, row: Row) -> str:
        """The class of a row, by the name that a prompt uses."""
        own = str(row.value["label"])
        return next((names.get(own, own) for key, names in NAMES.items() if str(self.source).startswith(key)), own)

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        if subject.head_task == self.task:
            predicted, true = subject.predict(self.task, rows)
            return [{"label": one, "reference": other} for one, other in zip(predicted, true, strict=True)]
        labels = self.labels()
        prompts = [self.prompt_text(row) for row in rows for _ in labels]
        scores = subject.likelihoods(prompts, [f" {label}" for _ in rows for label in labels])
        outputs = []
        for start in range(0, len(scores), len(labels)):
            own = [score.total for score in scores[start : start + len(labels)]]
            outputs.append({"label": labels[own.index(max(own))], "logprobs": own})
        return outputs

    def labels(self) -> list[str]:
        """The classes of the training data, or else of the evaluated data."""
        return sorted({self.label(row) for row in self.training() or self.read()})

    def prompt_text(self, row: Row) -> str:
        shown = [f"Text: {text_pair(each)}\nLabel: {self.label(each)}" for each in self.worked_examples(row)]
        return "\n\n".join([*shown, f"Text: {text_pair(row)}\nLabel:"])

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        if subject.head_task != self.task:
            longest = max(self.labels(), key=len)
            subject.check([self.prompt_text(row) for row in rows], [f" {longest}"] * len(rows), 0)

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        true = [output.get("reference", self.label(row)) for row, output in zip(rows, outputs, strict=True)]
        return label_measures([output["label"] for output in outputs], true)

    def correct(self, row: Row, output: Output) -> bool | None:
        return bool(output["label"] == output.get("reference", self.label(row)))

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        right = [float(bool(self.correct(row, output))) for row, output in zip(rows, outputs, strict=True)]
        return {"by_group": by_group([self.label(row) for row in rows], right)}

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        learned = self.training() or list(rows)
        most = Counter(self.label(row) for row in learned).most_common(1)[0][0]
        found = [Baseline(f"always {most}, the most frequent class", [{"label": most}] * len(rows))]
        if self.training():
            try:
                labels = tfidf_classifier(
                    [text_pair(row) for row in learned],
                    [self.label(row) for row in learned],
                    [text_pair(row) for row in rows],
                )
            except InputError as error:
                self.notes.append(error.message)
            else:
                name = f"TF-IDF and logistic regression on {self.trained_on}"
                found.append(Baseline(name, [{"label": label} for label in labels], is_classic=True))
        return found

    def shown(self, row: Row, output: Output) -> str:
        return str(output["label"])

    def question(self, example: Row) -> str:
        return text_pair(example)

    def reference(self, example: Row) -> str:
        return self.label(example)


SUITE = TextClasses
