"""The tasks of typed records by their names in recipes, and the task that a model with a head was made for."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig
from quatrain.tasks.classification import BestChoice, Classification, Regression
from quatrain.tasks.embedding import Similarity
from quatrain.tasks.extractive_qa import QuestionAnswering
from quatrain.tasks.records import RecordTask
from quatrain.tasks.seq2seq import TextToText
from quatrain.tasks.tagging import Tagging
from quatrain.training.settings import TaskSettings

RECORD_TASKS: dict[str, type[RecordTask]] = {
    kind.name: kind
    for kind in (Classification, Regression, Tagging, QuestionAnswering, BestChoice, TextToText, Similarity)
}
OF_HEAD = {kind.head: kind for kind in RECORD_TASKS.values() if kind is not Regression}
"""The task of each head; a classification head with one number is of regression (`task_of_model`)."""


def record_task(settings: TaskSettings) -> type[RecordTask]:
    """The task of a stage."""
    return RECORD_TASKS[settings.objective]


def task_of_model(config: ModelConfig, *, source_prefix: str = "") -> TaskSettings:
    """The stage that would teach the task that a model's head and labels are for.

    Raises InputError for a head without a task, and for models with several labels or numbers at once.
    """
    if config.head not in OF_HEAD:
        known = ", ".join(OF_HEAD)
        raise InputError(f"The model has the head {config.head}, which is of no task; tasks have one of {known}.")
    kind: Any = OF_HEAD[config.head].name
    if config.head == Regression.head and config.problem_type != "single_label":
        if config.problem_type != "regression" or len(config.labels) != 1:
            raise InputError("The model predicts several labels or numbers at once, which cannot be evaluated here.")
        kind = Regression.name
    # The labels are the model's own: `labels` of a stage would say what numbers in the data stand for.
    return TaskSettings(objective=kind, source_prefix=source_prefix)
