"""Evaluates a model on held-out examples of an objective: the loss, and the standard metrics of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.evaluation.metrics.answers import squad
from quatrain.evaluation.metrics.classification import accuracy, by_label, confusion, f1, matthews, pearson, spearman
from quatrain.evaluation.metrics.entities import PREFIXES, by_type, entity_f1
from quatrain.evaluation.metrics.likelihood import perplexity
from quatrain.training import objectives as kinds

LANGUAGE = (kinds.Causal, kinds.Masked, kinds.SpanCorruption, kinds.Denoising, kinds.Seq2Seq)

BATCH_TOKENS = 8192
"""Tokens, padding included, that are evaluated together."""

DETAILED = 64
"""Labels up to which the table of confusions is kept."""


def evaluate_objective(
    objective: Any, model: Any, examples: Sequence[Any], *, batch_tokens: int = BATCH_TOKENS, seed: int = 0
) -> dict[str, float]:
    """{"loss": mean, and the task's metrics} of a model on prepared examples.

    Accuracy and macro F1 for labels (with two also Matthews), accuracy and micro F1 for several labels, correlations
    for numbers, entity F1 for tags that are spans, accuracy for other tags, SQuAD's exact match and F1, perplexity
    where words are learned (Masked: also accuracy of the hidden words). Random choices follow from `seed` and the
    position of an example, so that two evaluations mask the same tokens. The model's mode is restored.

    Raises InputError where there is no example.
    """
    return measure(objective, model, examples, batch_tokens=batch_tokens, seed=seed)[0]


def measure(
    objective: Any, model: Any, examples: Sequence[Any], *, batch_tokens: int = BATCH_TOKENS, seed: int = 0
) -> tuple[dict[str, float], dict[str, Any]]:
    """As `evaluate_objective`, with the table of confusions and the scores per label for at most 64 labels.

    {"confusion": {"labels", "counts"}, "by_label": rows of label, precision, recall, f1, count}; of tags that are
    spans, the rows are the types of spans.
    """
    if not len(examples):
        raise InputError("evaluation: there is no example to measure; at least one is needed.")
    was_training = model.training
    model.eval()
    try:
        total, weight, sums, answers = _run(objective, model, examples, batch_tokens, seed)
    finally:
        model.train(was_training)
    if not weight:
        raise InputError("evaluation: these examples have no labels, so there is no loss to measure.")
    found = {"loss": total / weight, **{name: value / weight for name, value in sums.items()}}
    if isinstance(objective, LANGUAGE):
        words = sums.get("masked_loss", sums.get("plain_loss", total))
        found["perplexity"] = perplexity(words, weight)
    return found | _scores(objective, examples, answers), _details(objective, examples, answers)


@torch.no_grad()
def _run(
    objective: Any, model: Any, examples: Sequence[Any], batch_tokens: int, seed: int
) -> tuple[float, int, dict[str, float], list[Any]]:
    """Sums of loss, weight and metrics, and the prediction of each example."""
    total, weight, sums = 0.0, 0, dict[str, float]()
    answers: list[Any] = [None] * len(examples)
    predicts = hasattr(objective, "predict")
    for places in batches_of(examples, batch_tokens):
        part = [examples[place] for place in places]
        batch = kinds.collate(objective, part, [(seed, place) for place in places]).to(model.device)
        loss, count, metrics = objective.loss(model, batch)
        total, weight = total + float(loss.double()), weight + int(count)
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if isinstance(objective, kinds.Masked):
            labels = batch.labels[0] if objective.next_sentence_prediction else batch.labels
            right = torch.tensor(objective.predict(model, batch)) == labels[labels != -100].cpu()
            sums["accuracy"] = sums.get("accuracy", 0.0) + float(right.sum())
        elif predicts:
            for place, answer in zip(places, objective.predict(model, batch), strict=True):
                answers[place] = answer
    return total, weight, sums, answers


def batches_of(examples: Sequence[Any], batch_tokens: int) -> list[list[int]]:
    """Positions of examples in batches of similar lengths, with little padding."""
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place]))
    batches: list[list[int]] = [[]]
    for place in order:
        if batches[-1] and len(examples[batches[-1][0]]) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(place)
    return batches


def _details(objective: Any, examples: Sequence[Any], answers: list[Any]) -> dict[str, Any]:
    labels = list(getattr(objective, "labels", ()))
    if not 1 < len(labels) <= DETAILED:
        return {}
    if isinstance(objective, kinds.SequenceClassification) and objective.problem_type == "single_label":
        counts = confusion(answers, [example.label for example in examples], len(labels))
        return {"confusion": {"labels": labels, "counts": counts}, "by_label": by_label(counts, labels)}
    if isinstance(objective, kinds.TokenClassification):
        sides = objective.sentences(examples, answers), objective.truths(examples)
        said, true = ([labels.index(tag) for sentence in side for tag in sentence] for side in sides)
        counts = confusion(said, true, len(labels))
        rows = by_type(*sides) if _are_spans(labels) else by_label(counts, labels)
        return {"confusion": {"labels": labels, "counts": counts}, "by_label": rows}
    return {}


def references(objective: Any, examples: Sequence[Any]) -> list[Any] | None:
    """The references in the form that `scores` takes; None for objectives without predictions to compare."""
    if isinstance(objective, kinds.SequenceClassification):
        labels = [example.label for example in examples]
        if objective.problem_type == "single_label":
            return labels
        if objective.problem_type == "multi_label":
            return [[number for number, value in enumerate(row) if value] for row in labels]
        return [row[0] for row in labels] if len(objective.labels) == 1 else None
    if isinstance(objective, kinds.TokenClassification):
        return list(objective.truths(examples))
    if isinstance(objective, kinds.ExtractiveQA):
        return [example.answers for example in examples if example.first]
    if isinstance(objective, kinds.CosineSimilarity):
        return [example.score for example in examples]
    if isinstance(objective, kinds.MultipleChoice):
        return [example.label for example in examples]
    return None


def scores(objective: Any, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """The standard metrics of the objective's task, of predictions compared with references."""
    if isinstance(objective, kinds.SequenceClassification):
        return _of_labels(objective, predictions, references)
    if isinstance(objective, kinds.TokenClassification):
        return _of_tags(objective, predictions, references)
    if isinstance(objective, kinds.ExtractiveQA):
        return squad(predictions, references)
    if isinstance(objective, kinds.CosineSimilarity):
        return _correlations(predictions, references)
    return {"accuracy": accuracy(predictions, references)}


def _scores(objective: Any, examples: Sequence[Any], answers: list[Any]) -> dict[str, float]:
    """The metrics of what `predict` has returned for each example."""
    right = references(objective, examples)
    if right is None:
        return {}
    if isinstance(objective, kinds.TokenClassification):
        return scores(objective, objective.sentences(examples, answers), right)
    if isinstance(objective, kinds.ExtractiveQA):
        best = kinds.best_answers(examples, answers, may_be_none=not all(right))
        return scores(objective, [ranked[0].text for ranked in best], right)
    return scores(objective, answers, right)


def _of_labels(objective: Any, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    if objective.problem_type == "single_label":
        found = {"accuracy": accuracy(predictions, references), "f1_macro": f1(predictions, references)["f1"]}
        return found if len(objective.labels) != 2 else {**found, "matthews": matthews(predictions, references)}
    if objective.problem_type == "multi_label":
        return {
            "accuracy": accuracy(predictions, references),
            "f1_micro": f1(predictions, references, average="micro")["f1"],
            "f1_macro": f1(predictions, references)["f1"],
        }
    return _correlations(predictions, references)


def _of_tags(objective: Any, predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    flat = [[tag for sentence in side for tag in sentence] for side in (predicted, true)]
    found = {"accuracy": accuracy(*flat)}
    if _are_spans(objective.labels):
        return found | entity_f1(predicted, true)
    return {**found, "f1_macro": f1(*flat)["f1"]}


def _are_spans(labels: Sequence[str]) -> bool:
    return "O" in labels and all(label.partition("-")[0] in PREFIXES for label in labels)


def _correlations(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Empty where one side is constant or has one value: the correlation is undefined."""
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return {}
    return {"pearson": pearson(predictions, references), "spearman": spearman(predictions, references)}
