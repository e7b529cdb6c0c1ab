"""Translations compared with references by BLEU and chrF, with the tokenization named.

Papineni et al. 2002; Popović 2015; Post 2018 (arXiv 1804.08771): BLEU of differently tokenized texts differs by points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.metrics.texts import bleu, bleu_of, bleu_statistics, chrf_of, chrf_statistics
from quatrain.evaluation.metrics.words import bleu_tokenizer
from quatrain.evaluation.suite import Baseline, Output
from quatrain.evaluation.text_suite import TextSuite


class Translations(TextSuite):
    """BLEU and chrF of translations."""

    name = "translation"
    title = "translations, compared with those of people"
    paper = "Papineni et al. 2002; Post 2018, arXiv 1804.08771"
    data = "multi30k-test.{en,de}"
    columns = "a source and its translation: parallel files (test.{en,de}), TSV or JSONL"
    instruction = "Translate the following sentence, as in the examples."
    answer_prefix = "Translation:"
    stop = ("\n",)

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        texts = [output["text"].strip() for output in outputs]
        right = [self.references(row) for row in rows]
        own = bleu_tokenizer(text for each in right for text in each)
        found = [
            _bleu("bleu", texts, right, own, f"sacrebleu with its tokenizer {own}. Quote it with the signature."),
            _bleu("bleu_lowercase", texts, right, own, "The same without case.", lowercase=True),
            _bleu("bleu_untokenized", texts, right, "none", "Split at spaces alone: right if the texts are tokenized "
                  "already, otherwise lower, since punctuation sticks to words."),
        ]  # fmt: skip
        statistics = np.asarray(chrf_statistics(texts, right))
        chrf = Measure("chrf", statistics, _each(chrf_of), "F2 of n-grams of 1 to 6 characters; needs no tokenizer.")
        equal = [float(text in each) for text, each in zip(texts, right, strict=True)]
        return [*found, chrf, mean_of("exact", equal, "The share of translations that equal a reference.")]

    def details(self, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, Any]:
        texts = [output["text"].strip() for output in outputs]
        return {"signature": bleu(texts, [self.references(row) for row in rows], tokenize="auto")["signature"]}

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        return [Baseline("the source, copied", [{"text": self.question(row)} for row in rows])]


def _bleu(
    name: str, texts: Sequence[str], right: Sequence[Sequence[str]], tokenize: str, explanation: str,
    lowercase: bool = False,
) -> Measure:  # fmt: skip
    statistics = np.asarray(bleu_statistics(texts, right, tokenize=tokenize, lowercase=lowercase))
    return Measure(name, statistics, _each(bleu_of), explanation)


def _each(score: Any) -> Any:
    """A function of one row of sums, over all rows."""
    return lambda sums: np.asarray([score(row) for row in sums.tolist()])


SUITE = Translations
