"""Suites of a text written from a text: summaries and translations.

The source is the whole input of an encoder-decoder, after its `prefix`; any other model reads the instruction too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from quatrain.data.records import Row
from quatrain.evaluation.record_suite import RecordSuite
from quatrain.evaluation.subject import Prompt, Subject
from quatrain.evaluation.suite import WritingSuite


class TextSuite(RecordSuite, WritingSuite):
    """A source and its target, with further references where the data has some."""

    task = "seq2seq"
    extra = (*RecordSuite.extra, "prefix")
    instruction: ClassVar[str]
    """What a model of text is told, before the source."""
    answer_prefix: ClassVar[str]
    """What stands before its answer."""

    def __init__(self, source: str | None = None, *, prefix: str = "", **options: Any):
        super().__init__(source, **options)
        self.prefix = prefix

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"prefix": self.prefix}

    def prompts(self, subject: Subject, rows: Sequence[Row]) -> list[Prompt]:
        if subject.reads_sources:
            return [self.prefix + self.question(row) for row in rows]
        return super().prompts(subject, rows)

    def prompt_text(self, row: Row) -> str:
        shown = [f"{self._asked(each)} {self.reference(each)}" for each in self.worked_examples(row)]
        return "\n\n".join([*shown, self._asked(row)])

    def _asked(self, row: Row) -> str:
        return f"{self.instruction}\n\n{self.question(row)}\n\n{self.answer_prefix}"

    def question(self, example: Row) -> str:
        return str(example.value["source"])

    def reference(self, example: Row) -> str:
        return str(example.value["target"])

    def references(self, example: Row) -> list[str]:
        """All right texts."""
        return list(example.value.get("references") or [self.reference(example)])
