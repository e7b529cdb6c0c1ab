"""Summaries compared with those of people by ROUGE, in every way in which papers report it.

Lin 2004. The same summaries score several points apart by stemming, by taking the mean or the best of several
references, and for ROUGE-Lsum by whether sentences stand on lines of their own. DialogSum: Chen et al. 2021 (arXiv
2105.06762).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations

from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.metrics.texts import rouge_by_reference
from quatrain.evaluation.suite import Baseline, Output
from quatrain.evaluation.text_suite import TextSuite
from quatrain.tasks.seq2seq import lead

KINDS = ("rouge1", "rouge2", "rougeL")
_END = re.compile(r"(?<=[.!?])\s+")


class Summaries(TextSuite):
    """ROUGE of summaries."""

    name = "summarization"
    title = "summaries of dialogues, compared with those of people"
    paper = "Lin 2004; Chen et al. 2021, arXiv 2105.06762"
    data = "dialogsum-test"
    columns = "a source and a summary, and perhaps further ones"
    instruction = "Summarize the following text."
    answer_prefix = "Summary:"
    stop = ("\n\n",)

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        texts = [output["text"].strip() for output in outputs]
        right = [self.references(row) for row in rows]
        stemmed = rouge_by_reference(texts, right, kinds=KINDS, stemming=True)
        plain = rouge_by_reference(texts, right, kinds=KINDS)
        found = [mean_of(kind, [_mean(row[kind]) for row in stemmed], _STEMMED) for kind in KINDS]
        found += [mean_of(f"{kind}_unstemmed", [_mean(row[kind]) for row in plain], _PLAIN) for kind in KINDS]
        if any(len(each) > 1 for each in right):
            found += [mean_of(f"{kind}_best", [max(row[kind]) for row in stemmed], _BEST) for kind in KINDS]
        return [*found, *_sums(texts, right)]

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        found = [Baseline("the first three turns or sentences", [{"text": lead(self.question(row))} for row in rows])]
        if all(len(self.references(row)) > 1 for row in rows):
            found.append(Baseline("human against human", measures=self._people(rows), is_ceiling=True))
        return found

    def _people(self, rows: Sequence[Row]) -> list[Measure]:
        """Each person's summary scored by those of the others."""
        values: dict[str, list[float]] = {}
        for row in rows:
            pairs = list(permutations(self.references(row), 2))
            for ending, stemming in (("", True), ("_unstemmed", False)):
                scores = rouge_by_reference(
                    [one for one, _ in pairs], [other for _, other in pairs], kinds=KINDS, stemming=stemming
                )
                for kind in KINDS:
                    values.setdefault(kind + ending, []).append(_mean([score[kind][0] for score in scores]))
        return [mean_of(name, own) for name, own in values.items()]


_STEMMED = "F1, words stemmed (Porter), the mean over the references."
_PLAIN = "Words as they are: 'walked' is not 'walks'. Some tools' default."
_BEST = "Stemmed, the best of the references: higher than the mean over them, as some papers report."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sums(texts: Sequence[str], right: Sequence[Sequence[str]]) -> list[Measure]:
    """ROUGE-Lsum, which takes lines as sentences: of the texts as they are, and of one sentence a line."""
    found = []
    for name, explanation, on_lines in (
        ("rougeLsum", "Stemmed; a line is a sentence, in texts as they are. Without line breaks it is rougeL.", False),
        (
            "rougeLsum_lines",
            "Stemmed, each sentence on a line of its own first, as in CNN/DailyMail papers.",
            True,
        ),
    ):
        own = [_lines(text) for text in texts] if on_lines else list(texts)
        other = [[_lines(text) for text in each] if on_lines else list(each) for each in right]
        scores = rouge_by_reference(own, other, kinds=("rougeLsum",), stemming=True)
        found.append(mean_of(name, [_mean(row["rougeLsum"]) for row in scores], explanation))
    return found


def _lines(text: str) -> str:
    return "\n".join(_END.split(text.strip()))


SUITE = Summaries
