"""Evaluates a model on held-out examples of an objective: the loss, and the standard metrics of the objective's task.

The objective gives predictions and references; the tables here choose the metrics that compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.evaluation.metrics.answers import squad
from quatrain.evaluation.metrics.classification import accuracy, by_label, confusion, f1, matthews, pearson, spearman
from quatrain.evaluation.metrics.entities import PREFIXES, by_type, entity_f1
from quatrain.evaluation.metrics.likelihood import perplexity
from quatrain.training.objectives import (
    CosineSimilarity,
    ExtractiveQA,
    SequenceClassification,
    TokenClassification,
    collate,
)
from quatrain.training.objectives.images import ImageClassification
from quatrain.training.objectives.metrics import MetricSums

BATCH_TOKENS = 8192
"""Tokens, padding included, that are evaluated together."""
MAX_CONFUSION_LABELS = 64
"""The most labels for which a confusion matrix is kept."""


def evaluate_objective(
    objective: Any, model: Any, examples: Sequence[Any], *, batch_tokens: int = BATCH_TOKENS, seed: int = 0
) -> dict[str, float]:
    """{"loss": mean, and the task's metrics} of a model on prepared examples.

    Accuracy and macro F1 for labels (also Matthews' coefficient for two), accuracy and micro F1 for several labels per
    text, correlations for numbers, entity F1 for tags that mark spans, accuracy for other tags, SQuAD's exact match and
    F1, perplexity for language models (for masked ones also the accuracy on masked tokens). Random draws follow from
    `seed` and the position of an example, so that two evaluations mask the same tokens. The model's mode is restored.

    Raises InputError if there are no examples.
    """
    return measure(objective, model, examples, batch_tokens=batch_tokens, seed=seed)[0]


def measure(
    objective: Any, model: Any, examples: Sequence[Any], *, batch_tokens: int = BATCH_TOKENS, seed: int = 0
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of `evaluate_objective`, and the confusion matrix and scores of each label (for at most 64 labels).

    The second dictionary is {"confusion": {"labels", "counts"}, "by_label": rows of label, precision, recall, f1,
    count}; for tags that mark spans, the rows are types of spans.
    """
    if not len(examples):
        raise InputError("evaluation: there is no example to measure; at least one is needed.")
    was_training = model.training
    expected = references(objective, examples)
    model.eval()
    try:
        total, weight, sums, outputs = _run(objective, model, examples, expected is not None, batch_tokens, seed)
    finally:
        model.train(was_training)
    if not weight:
        raise InputError("evaluation: these examples have no labels, so there is no loss to measure.")
    metrics = {"loss": total / weight, **sums.means(weight)}
    if (likelihood := getattr(objective, "likelihood", None)) is not None:
        metrics["perplexity"] = perplexity(sums.total(likelihood, total), weight)
    if expected is None:
        return metrics, {}
    predictions = objective.predictions(examples, outputs)
    details = getattr(objective, "details", None) or partial(_of(DETAILS, objective, lambda *_: {}), objective)
    return metrics | scores(objective, predictions, expected), details(predictions, expected)


def predictions_of(objective: Any, model: Any, records: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The model's prediction for each record and the references, as the metrics of the task take them.

    Raises InputError for records that the objective cannot read, since a score over the others would be of another set.
    """
    examples, notes = objective.prepare(records)
    expected = references(objective, examples)
    if notes or expected is None:
        raise InputError("evaluation: not all records can be predicted:", notes or ["the objective predicts nothing"])
    outputs = _run(objective, model, examples, True, BATCH_TOKENS, 0)[3]
    return list(objective.predictions(examples, outputs)), list(expected)


@torch.no_grad()
def _run(
    objective: Any, model: Any, examples: Sequence[Any], predict: bool, batch_tokens: int, seed: int
) -> tuple[float, int, MetricSums, list[Any]]:
    """Sums of loss, weight and metrics, and the output of `objective.predict` for each example."""
    total, weight, sums = 0.0, 0, MetricSums()
    outputs: list[Any] = [None] * len(examples)
    for places in batches_of(examples, batch_tokens):
        chosen = [examples[place] for place in places]
        batch = collate(objective, chosen, [(seed, place) for place in places]).to(model.device)
        loss, count, metrics = objective.loss(model, batch)
        total, weight = total + float(loss.double()), weight + int(count)
        if hasattr(objective, "evaluation_metrics"):
            metrics = {**metrics, **objective.evaluation_metrics(model, batch)}
        sums.add(metrics)
        if predict:
            for place, output in zip(places, objective.predict(model, batch), strict=True):
                outputs[place] = output
    return total, weight, sums, outputs


def batches_of(examples: Sequence[Any], batch_tokens: int) -> list[list[int]]:
    """Positions of examples in batches of similar lengths, with little padding."""
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place]))
    batches: list[list[int]] = [[]]
    for place in order:
        if batches[-1] and len(examples[batches[-1][0]]) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(place)
    return batches


def references(objective: Any, examples: Sequence[Any]) -> list[Any] | None:
    """The objective's references for the examples; None if it predicts nothing that could be compared."""
    return objective.references(examples) if hasattr(objective, "references") else None


def scores(objective: Any, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """The standard metrics of the objective's task: its own `scores`, those of `SCORES`, or else accuracy."""
    if hasattr(objective, "scores"):
        own: dict[str, float] = objective.scores(predictions, references)
        return own
    compare = _of(SCORES, objective, lambda _, *sides: {"accuracy": accuracy(*sides)})
    return compare(objective, predictions, references)


def _of(table: dict[type, Compare], objective: Any, default: Compare) -> Compare:
    return next((table[each] for each in type(objective).__mro__ if each in table), default)


def _label_scores(objective: Any, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    if objective.problem_type == "regression":
        return _correlations(objective, predictions, references)
    metrics = {"accuracy": accuracy(predictions, references)}
    if objective.problem_type == "multi_label":
        metrics["f1_micro"] = f1(predictions, references, average="micro")["f1"]
    metrics["f1_macro"] = f1(predictions, references)["f1"]
    if objective.problem_type == "single_label" and len(objective.labels) == 2:
        metrics["matthews"] = matthews(predictions, references)
    return metrics


def _tag_scores(
    objective: Any, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    flat = [[tag for sentence in side for tag in sentence] for side in (predictions, references)]
    metrics = {"accuracy": accuracy(*flat)}
    if _mark_spans(objective.labels):
        return metrics | entity_f1(predictions, references)
    return {**metrics, "f1_macro": f1(*flat)["f1"]}


def _mark_spans(labels: Sequence[str]) -> bool:
    return "O" in labels and all(label.partition("-")[0] in PREFIXES for label in labels)


def _correlations(objective: Any, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Empty if one side has a single value: the correlation is then undefined."""
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return {}
    return {"pearson": pearson(predictions, references), "spearman": spearman(predictions, references)}


def _label_details(objective: Any, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
    labels = list(objective.labels)
    if objective.problem_type != "single_label" or not 1 < len(labels) <= MAX_CONFUSION_LABELS:
        return {}
    counts = confusion(predictions, references, len(labels))
    return {"confusion": {"labels": labels, "counts": counts}, "by_label": by_label(counts, labels)}


def _tag_details(
    objective: Any, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    labels = list(objective.labels)
    if not 1 < len(labels) <= MAX_CONFUSION_LABELS:
        return {}
    predicted, true = ([labels.index(tag) for tags in side for tag in tags] for side in (predictions, references))
    counts = confusion(predicted, true, len(labels))
    rows = by_type(predictions, references) if _mark_spans(labels) else by_label(counts, labels)
    return {"confusion": {"labels": labels, "counts": counts}, "by_label": rows}


Compare = Callable[[Any, Sequence[Any], Sequence[Any]], dict[str, Any]]
"""(objective, predictions, references) to metrics or details."""
SCORES: dict[type, Compare] = {
    SequenceClassification: _label_scores,
    ImageClassification: _label_scores,
    TokenClassification: _tag_scores,
    ExtractiveQA: lambda _, predictions, references: squad(predictions, references),
    CosineSimilarity: _correlations,
}
"""The metrics of an objective; accuracy for all others."""
DETAILS: dict[type, Compare] = {
    SequenceClassification: _label_details,
    ImageClassification: _label_details,
    TokenClassification: _tag_details,
}
"""The confusion matrix and scores of each label, for objectives with labels."""
