"""A tag for each word: parts of speech by accuracy, entities by F1.

Of entities no accuracy is given: a tagger that finds none at all is right on most words (92.4 % of WNUT-2017's test
part).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from quatrain.data.records import Row
from quatrain.evaluation.classics import word_tags
from quatrain.evaluation.measures import Measure, f1_of, mean_of, table_measures
from quatrain.evaluation.metrics.entities import PREFIXES, entities
from quatrain.evaluation.record_suite import RecordSuite
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output


class Tags(RecordSuite):
    """Accuracy and F1 of tags; of entities their F1, strictly and by type."""

    name = "tagging"
    title = "a tag for each word"
    data = "ud-ewt-test"
    task = "tag"
    columns = "sentences with a tag for each word (CoNLL, JSONL)"

    def tags(self, row: Row) -> list[str]:
        """The right tags."""
        return [str(tag) for tag in row.value["tags"]]

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        predicted, _ = subject.predict(self.task, rows)
        return [{"tags": list(tags)} for tags in predicted]

    def marks_spans(self, rows: Sequence[Row]) -> bool:
        """Whether the tags mark entities."""
        tags = {tag for row in rows for tag in self.tags(row)}
        return "O" in tags and all(tag.partition("-")[0] in PREFIXES for tag in tags)

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        pairs = [(list(output["tags"]), self.tags(row)) for row, output in zip(rows, outputs, strict=True)]
        if self.marks_spans(rows):
            return _entity_measures(pairs)
        right = [sum(map(str.__eq__, *pair)) for pair in pairs]
        counts = [len(true) for _, true in pairs]
        shares = [hits / max(count, 1) for hits, count in zip(right, counts, strict=True)]
        whole = [float(one == other) for one, other in pairs]
        return [
            mean_of("accuracy", shares, "The share of right tags over all words.", weights=counts),
            *table_measures(_table(pairs)),
            mean_of("sentence_accuracy", whole, "The share of sentences without a wrong tag."),
        ]

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        learned = self.training() or list(rows)
        of = f"in {self.trained_on}" if self.trained_on else "of these sentences"
        most = Counter(tag for row in learned for tag in self.tags(row)).most_common(1)[0][0]
        known = word_tags([row.value["words"] for row in learned], [self.tags(row) for row in learned])
        by_word = [{"tags": [known.get(word, most) for word in row.value["words"]]} for row in rows]
        constant = [{"tags": [most] * len(row.value["words"])} for row in rows]
        return [
            Baseline(f"each word's most frequent tag {of}", by_word),
            Baseline(f"always {most}, the most frequent tag", constant),
        ]

    def shown(self, row: Row, output: Output) -> str:
        return " ".join(output["tags"])

    def question(self, example: Row) -> str:
        return " ".join(example.value["words"])

    def reference(self, example: Row) -> str:
        return " ".join(self.tags(example))


def _table(pairs: Sequence[tuple[list[str], list[str]]]) -> np.ndarray:
    """For each sentence the right, predicted and true tags of each label (N, 3, L)."""
    labels = sorted({tag for pair in pairs for tags in pair for tag in tags})
    number = {label: place for place, label in enumerate(labels)}
    table = np.zeros((len(pairs), 3, len(labels)))
    for row, (predicted, true) in enumerate(pairs):
        for one, other in zip(predicted, true, strict=True):
            table[row, 0, number[other]] += one == other
            table[row, 1, number[one]] += 1
            table[row, 2, number[other]] += 1
    return table


def _entity_measures(pairs: Sequence[tuple[list[str], list[str]]]) -> list[Measure]:
    """F1 of entities: micro as conlleval counts, the means over types, and without types."""
    spans = [(set(entities(predicted)), set(entities(true))) for predicted, true in pairs]
    kinds = sorted({span[0] for sides in spans for side in sides for span in side})
    table = np.zeros((len(pairs), 3, max(1, len(kinds))))
    untyped = np.zeros((len(pairs), 3))
    for row, (predicted, true) in enumerate(spans):
        for place, kind in enumerate(kinds):
            one, other = ({span for span in side if span[0] == kind} for side in (predicted, true))
            table[row, :, place] = len(one & other), len(one), len(other)
        bare = [{span[1:] for span in side} for side in (predicted, true)]
        untyped[row] = len(bare[0] & bare[1]), len(bare[0]), len(bare[1])
    micro, macro, weighted = (
        next(measure for measure in table_measures(table) if measure.name == name)
        for name in ("f1_micro", "f1_macro", "f1_weighted")
    )
    explanation = "F1 of entities: an entity is right if its type, first and last word are (conlleval, seqeval)."
    return [
        Measure("entity_f1", micro.statistics, micro.combine, explanation, unit="%", per_example=False),
        Measure("entity_f1_macro", macro.statistics, macro.combine, "The mean of the types' F1.", unit="%",
                per_example=False),
        Measure("entity_f1_weighted", weighted.statistics, weighted.combine,
                "The mean of the types' F1, weighted by how often each occurs.", unit="%", per_example=False),
        Measure("span_f1", untyped, f1_of, "F1 of entities whatever their type.", unit="%", per_example=False),
    ]  # fmt: skip


SUITE = Tags
