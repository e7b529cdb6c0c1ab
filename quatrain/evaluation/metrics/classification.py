"""Metrics of labels and numbers: accuracy, precision, recall, F1, and the correlations of Matthews, Pearson, Spearman.

They need no library, so that validation during training works without extras. The tests compare them with scikit-learn
and SciPy, including ties, absent classes and constant predictions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.evaluation.metrics.checks import check_lengths

AVERAGES = ("macro", "micro", "weighted", "binary")


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """The share of predictions that equal their reference, from 0 to 1.

    Raises InputError for lists that are empty or differ in length.
    """
    check_lengths(predictions, references, "accuracy")
    return sum(one == other for one, other in zip(predictions, references, strict=True)) / len(references)


def f1(
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    average: str = "macro",
    positive: Hashable = 1,
) -> dict[str, float]:
    """{"precision", "recall", "f1"}, from 0 to 1, over the labels that are predicted or true.

    `average`: "macro" is the mean over the labels, "weighted" the mean weighted by how often each label is true,
    "micro" counts over all labels, and "binary" scores the label `positive` alone. A division by zero gives 0. For
    multi-label data, predictions and references are lists of labels. Raises InputError for lists that are empty or
    differ in length, and for an unknown average.
    """
    check_lengths(predictions, references, "F1")
    if average not in AVERAGES:
        raise InputError(f"F1: average {average!r}; must be one of {', '.join(AVERAGES)}.")
    predicted, true = [_label_set(each) for each in predictions], [_label_set(each) for each in references]
    labels = sorted(set().union(*predicted, *true), key=lambda label: (str(type(label)), label))
    if average == "binary":
        labels = [positive]
    table = np.array(
        [
            (
                sum(label in one and label in other for one, other in zip(predicted, true, strict=True)),
                sum(label in one for one in predicted),
                sum(label in other for other in true),
            )
            for label in labels
        ],
        dtype=np.float64,
    ).reshape(-1, 3)
    if average == "micro":
        table = table.sum(0, keepdims=True)
    scores = np.array([_scores(*row) for row in table]).reshape(-1, 3)
    weights = table[:, 2] if average == "weighted" else np.ones(len(table))
    means = (scores * weights[:, None]).sum(0) / weights.sum() if weights.sum() else np.zeros(3)
    return dict(zip(("precision", "recall", "f1"), means.tolist(), strict=True))


def confusion(predictions: Sequence[int], references: Sequence[int], count: int) -> list[list[int]]:
    """The confusion matrix of `count` labels: true labels by row, predicted labels by column.

    Raises InputError for lists that are empty or differ in length.
    """
    check_lengths(predictions, references, "confusion")
    table = np.zeros((count, count), dtype=np.int64)
    np.add.at(table, (np.asarray(references), np.asarray(predictions)), 1)
    counts: list[list[int]] = table.tolist()
    return counts


def by_label(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each label that occurs {"label", "precision", "recall", "f1", "count"}, from a confusion matrix."""
    rows = []
    for place, label in enumerate(labels):
        true, predicted = sum(counts[place]), sum(row[place] for row in counts)
        if true or predicted:
            scores = dict(zip(("precision", "recall", "f1"), _scores(counts[place][place], predicted, true)))
            rows.append({"label": label} | scores | {"count": true})
    return rows


def _label_set(label: Any) -> frozenset[Hashable]:
    return frozenset(label) if isinstance(label, list | tuple | set | frozenset) else frozenset([label])


def _scores(both: float, predicted: float, true: float) -> tuple[float, float, float]:
    return (
        both / predicted if predicted else 0.0,
        both / true if true else 0.0,
        2 * both / (predicted + true) if predicted + true else 0.0,
    )


def matthews(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Matthews' correlation coefficient (Matthews 1975; for many labels Gorodkin 2004), from -1 to 1; 0 for a constant.

    Raises InputError for lists that are empty or differ in length.
    """
    check_lengths(predictions, references, "Matthews")
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*references, *predictions]))}
    table = np.zeros((len(numbers), len(numbers)))
    for one, other in zip(predictions, references, strict=True):
        table[numbers[other], numbers[one]] += 1
    total, true, predicted = table.sum(), table.sum(1), table.sum(0)
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float((np.trace(table) * total - true @ predicted) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Pearson's correlation, from -1 to 1.

    Raises InputError for fewer than two numbers, for other values, and for a constant, whose correlation is undefined.
    """
    one, other = _numbers(predictions, references, "Pearson")
    one, other = one - one.mean(), other - other.mean()
    # Divide by the largest value first, so that very small or large numbers do not under- or overflow.
    one, other = one / np.abs(one).max(), other / np.abs(other).max()
    return float(np.clip(one @ other / math.sqrt((one @ one) * (other @ other)), -1, 1))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Spearman's rank correlation, with mean ranks for ties, from -1 to 1. Raises InputError as `pearson` does."""
    one, other = _numbers(predictions, references, "Spearman")
    return pearson(_ranks(one), _ranks(other))  # type: ignore[arg-type]


def _numbers(predictions: Sequence[float], references: Sequence[float], metric: str) -> tuple[np.ndarray, np.ndarray]:
    check_lengths(predictions, references, metric)
    if len(references) < 2:
        raise InputError(f"{metric}: one pair of numbers has no correlation; at least 2 are needed.")
    arrays = []
    for name, values in (("predictions", predictions), ("references", references)):
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{metric}: {name} must be numbers: {error}") from error
        if array.ndim != 1 or not np.isfinite(array).all():
            what = "a list of numbers" if array.ndim != 1 else "finite numbers"
            raise InputError(f"{metric}: {name} must be {what}.")
        if (array == array[0]).all():
            raise InputError(f"{metric}: all {name} are {array[0]:g}; a constant has no correlation.")
        arrays.append(array)
    return arrays[0], arrays[1]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts + 1) / 2)[places]
