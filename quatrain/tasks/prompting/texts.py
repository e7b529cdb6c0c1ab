"""Any source of data as a task whose answers are texts, so that a prompt can ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.corpus import DataParts
from quatrain.data.records import Row
from quatrain.tasks.classification import BestChoice, Classification
from quatrain.tasks.extractive_qa import QuestionAnswering
from quatrain.tasks.instructions import Instructions
from quatrain.tasks.records import RecordTask
from quatrain.tasks.seq2seq import TextToText
from quatrain.tasks.task import GenerateSettings, Task, generated, source_task


class TextLabels(Classification):
    """The class of a text, named by the text that the data have."""

    def name_of(self, label: str | int) -> str:
        return str(label)


OF_FORMAT: dict[str, type[RecordTask]] = {
    kind.format: kind for kind in (TextLabels, TextToText, BestChoice, QuestionAnswering) if kind.format
}
"""The task of each format of records."""


def text_task(data: DataParts, *, folder: Path, limit: int | None = None) -> Task[Any]:
    """The task of some data, whose answers are texts: generated, of a task with its own sources, of records, or chats.

    At most `limit` examples of each held-out set are scored; a task that generates files writes them into `folder`.
    Raises InputError for data without answers.
    """
    settings = data.settings
    if settings.generates:
        made = generated(settings, GenerateSettings(folder, data.seed, held_out=limit or 200))
        if made is None:
            raise InputError(f"data.task {format_value(settings.task)}: unknown")
        return made
    owned = source_task(data)
    if owned is not None:
        return owned
    format = settings.format or data.detected_format("source" if settings.source is not None else "test")
    if format == "chat":
        return Instructions(data, limit=limit)
    if format not in OF_FORMAT:
        known = ", ".join([*OF_FORMAT, "chat"])
        raise InputError(f"{data.name()}: records of the format {format} have no answer to prompt for; must be {known}")
    return OF_FORMAT[format](None, data, limit=limit)


def usable(task: Task[Any], examples: Any) -> list[Any]:
    """The examples that can be asked and judged: records without a fault, with a reference."""
    rows = [each for each in examples if not (isinstance(each, Row) and each.fault is not None)]
    return [each for each in rows if task.answered(each)]
