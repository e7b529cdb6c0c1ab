"""A text written from a text: translation, summaries."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quatrain.data.records import Row
from quatrain.tasks.records import RecordTask
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import Seq2Seq
from quatrain.training.settings import TaskSettings

LEAD = 3
"""Turns or sentences of the source that the dumb baseline takes."""


class TextToText(RecordTask):
    """Pairs of a source and its target, with further references where the data has some."""

    name = "seq2seq"
    format = "pair"
    head = "seq2seq"
    writes = True
    baseline_name = "the first three turns or sentences of the source"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> Seq2Seq:
        return Seq2Seq(
            tokenizer,
            source_prefix=settings.source_prefix,
            max_length=limit,
            max_target_length=settings.max_target_length,
            label_smoothing=settings.label_smoothing,
        )

    def question(self, example: Row) -> str:
        return str(example.value["source"])

    def reference(self, example: Row) -> str:
        return str(example.value["target"])

    def references(self, example: Row) -> list[str]:
        return list(dict.fromkeys([self.reference(example), *example.value.get("references", [])]))

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """Lead-3 of summarization (Nallapati et al. 2017, arXiv 1611.04230). A short source is copied whole."""
        return [lead(self.question(example)) for example in examples]


def lead(source: str) -> str:
    """The first three turns of a dialogue, or sentences of a text."""
    lines = [line for line in source.splitlines() if line.strip()]
    if len(lines) > 1:
        return "\n".join(lines[:LEAD])
    return " ".join(re.split(r"(?<=[.!?])\s+", source.strip())[:LEAD])
