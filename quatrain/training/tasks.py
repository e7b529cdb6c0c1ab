"""Tasks of typed records: which data each objective reads, and the objective that a recipe's words or a model mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import (
    Contrastive,
    CosineSimilarity,
    ExtractiveQA,
    MultipleChoice,
    Seq2Seq,
    SequenceClassification,
    TokenClassification,
)
from quatrain.training.settings import TaskSettings

FORMATS = {
    "classify": "labelled",
    "regress": "labelled",
    "tag": "tagged",
    "answer": "qa",
    "choice": "choice",
    "seq2seq": "pair",
}
"""What each objective reads; `embed` reads pairs, or labelled pairs with a score."""

SCORE = ("score",)
"""The name of the number that `regress` foretells."""

STRIDE = 128
"""Tokens that two windows of a long text share, where nothing else is said and the model reads as many."""

OF_HEAD = {
    "sequence_classification": "classify",
    "token_classification": "tag",
    "question_answering": "answer",
    "multiple_choice": "choice",
    "seq2seq": "seq2seq",
    "embedding": "embed",
}


def task_of_model(config: ModelConfig, *, source_prefix: str = "") -> TaskSettings:
    """The task that a model was made for, as its head and labels tell.

    Raises InputError where the head is of no task, or of one that a recipe does not have (several labels at once).
    """
    if config.head not in OF_HEAD:
        known = ", ".join(OF_HEAD)
        raise InputError(f"The model has the head {config.head}, which is of no task; tasks have one of {known}.")
    kind: Any = OF_HEAD[config.head]
    if config.head == "sequence_classification" and config.problem != "single":
        if config.problem != "regression" or len(config.labels) != 1:
            raise InputError("The model foretells several labels or numbers at once, which is not measured here.")
        kind = "regress"
    # Without `labels`: they are the model's own, and those of a stage say what numbers in the data stand for.
    return TaskSettings(objective=kind, source_prefix=source_prefix)


def labels_of_model(settings: TaskSettings, config: ModelConfig) -> tuple[str, ...]:
    """The labels of a model's head; one score where it predicts a number."""
    return SCORE if settings.objective == "regress" else tuple(config.labels)


def make_objective(
    settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
) -> Any:
    """The task of a recipe's stage, a `TextObjective`, for data of this format and rows of at most `limit` tokens."""
    kind = settings.objective
    if kind in ("classify", "regress"):
        problem = "single" if kind == "classify" else "regression"
        numbered = bool(settings.labels)
        return SequenceClassification(tokenizer, labels, problem=problem, max_length=limit, numbered=numbered)
    if kind == "tag":
        stride, numbered = settings.stride or 0, bool(settings.labels)
        return TokenClassification(tokenizer, labels, max_length=limit, stride=stride, numbered=numbered)
    if kind == "answer":
        stride = min(STRIDE, limit // 3) if settings.stride is None else settings.stride
        return ExtractiveQA(tokenizer, max_length=limit, stride=stride)
    if kind == "choice":
        return MultipleChoice(tokenizer, max_length=limit)
    if kind == "seq2seq":
        return Seq2Seq(
            tokenizer,
            source_prefix=settings.source_prefix,
            max_length=limit,
            max_target_length=settings.max_target_length,
            label_smoothing=settings.label_smoothing,
        )
    if format == "pair":
        return Contrastive(tokenizer, temperature=settings.temperature, max_length=limit)
    return CosineSimilarity(tokenizer, max_length=limit)
