"""Scores as sums over examples, so that one bootstrap serves them all, and the tests that compare two models.

A `Measure` keeps a row of numbers for each example and a function from their sum to the score. Accuracy sums
(right, 1), micro F1 sums (true positives, predicted, true), BLEU sums counts of n-grams. A resample of the examples is
then a weighted sum of rows, and every score has an interval at the cost of one matrix product.

Percentile bootstrap: Efron 1979; for BLEU Koehn 2004. Paired bootstrap: the same resamples for both models.
McNemar 1947, exact by the binomial distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quatrain.core.errors import InputError

RESAMPLES = 2000
"""Resamples of a bootstrap: the ends of a 95 % interval then vary by about a hundredth of its width."""
BLOCK = 2_000_000
"""Numbers of resampled weights that are held at once."""

Combine = Callable[[np.ndarray], np.ndarray]
"""Sums of statistics (R, K) to scores (R,)."""


@dataclass(frozen=True)
class Interval:
    """The ends of a 95 % interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in the interval, its ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Measure:
    """One score over examples: `statistics` (N, K) are summed over the examples and combined to the score.

    `explanation` says how the score is counted and how it differs from others of the same predictions. `per_example`:
    whether the score of one example alone (`values`) means something.
    """

    name: str
    statistics: np.ndarray
    combine: Combine
    explanation: str = ""
    higher_is_better: bool = True
    per_example: bool = True
    unit: str = ""
    """"%" for a share from 0 to 1 that is shown in per cent; otherwise what the number counts."""

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.statistics)

    @property
    def value(self) -> float:
        """The score over all examples."""
        with np.errstate(all="ignore"):
            return float(self.combine(self.statistics.sum(0, keepdims=True))[0])

    @property
    def values(self) -> np.ndarray:
        """The score of each example alone (N,)."""
        with np.errstate(all="ignore"):
            return self.combine(self.statistics)

    def resampled(self, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
        """The score of each resample of the examples with replacement (R,); the same resamples for the same seed."""
        generator = np.random.default_rng(seed)
        rows = max(1, BLOCK // max(1, self.count))
        scores = []
        for start in range(0, resamples, rows):
            drawn = generator.multinomial(self.count, np.full(self.count, 1 / self.count), min(rows, resamples - start))
            with np.errstate(all="ignore"):
                scores.append(self.combine(drawn @ self.statistics))
        return np.concatenate(scores)

    def interval(self, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
        """The 95 % interval of the score: the ends that hold the middle of its resamples.

        A share whose resamples are all equal, such as 0 of 20 right, has Wilson's interval (Wilson 1927) instead, since
        the bootstrap knows no other examples than those that it has seen.
        """
        if self.count < 2:
            return Interval(math.nan, math.nan) if self.unit != "%" else wilson(self.value, self.count)
        scores = self.resampled(seed=seed, resamples=resamples)
        scores = scores[np.isfinite(scores)]
        if not len(scores):
            return Interval(math.nan, math.nan)
        low, high = np.quantile(scores, (0.025, 0.975))
        if low == high and self.unit == "%" and self.value in (0.0, 1.0):
            return wilson(self.value, self.count)
        return Interval(float(low), float(high))

    def part(self, places: Sequence[int]) -> Measure:
        """The same score over some of the examples."""
        return replace(self, statistics=self.statistics[list(places)])


def wilson(share: float, count: int) -> Interval:
    """The 95 % interval of a share seen in `count` trials (Wilson 1927)."""
    z = 1.959964
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mean_of(
    name: str,
    values: Sequence[float],
    explanation: str = "",
    *,
    weights: Sequence[float] | None = None,
    unit: str = "%",
    higher_is_better: bool = True,
) -> Measure:
    """The mean of a number of each example, perhaps weighted. Examples whose value is NaN do not count."""
    numbers = np.asarray(values, dtype=np.float64)
    shares = np.ones(len(numbers)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = np.where(np.isnan(numbers), 0.0, shares)
    statistics = np.stack([np.nan_to_num(numbers) * shares, shares], axis=1)
    return Measure(name, statistics, ratio, explanation, higher_is_better, unit=unit)


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first of two sums divided by the second."""
    quotient: np.ndarray = sums[:, 0] / sums[:, 1]
    return quotient


def f1_of(sums: np.ndarray) -> np.ndarray:
    """F1 of sums of (true positives, predicted, true); 0 where nothing is predicted or true."""
    total = sums[:, 1] + sums[:, 2]
    scores: np.ndarray = np.where(total > 0, 2 * sums[:, 0] / np.where(total > 0, total, 1), 0.0)
    return scores


def label_measures(predictions: Sequence[Any], references: Sequence[Any]) -> list[Measure]:
    """Accuracy, and macro, micro and weighted F1 of the same labels, with how they differ."""
    labels = sorted(set(predictions) | set(references), key=str)
    number = {label: place for place, label in enumerate(labels)}
    table = np.zeros((len(references), 3, len(labels)))
    for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
        table[row, 0, number[true]] += predicted == true
        table[row, 1, number[predicted]] += 1
        table[row, 2, number[true]] += 1
    right = [float(predicted == true) for predicted, true in zip(predictions, references, strict=True)]
    accuracy = mean_of("accuracy", right, "The share of right labels. With one label each, it is micro F1.")
    return [accuracy, *table_measures(table)]


def table_measures(table: np.ndarray) -> list[Measure]:
    """Macro, micro and weighted F1 of the right, predicted and true labels of each example (N, 3, labels)."""
    flat = table.reshape(len(table), -1)

    def by_label(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        both, predicted, true = sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)
        total = predicted + true
        return np.where(total > 0, 2 * both / np.where(total > 0, total, 1), 0.0), true, total

    def macro(sums: np.ndarray) -> np.ndarray:
        scores, _, total = by_label(sums)
        mean: np.ndarray = scores.sum(1) / np.maximum((total > 0).sum(1), 1)
        return mean

    def weighted(sums: np.ndarray) -> np.ndarray:
        scores, true, _ = by_label(sums)
        mean: np.ndarray = (scores * true).sum(1) / np.maximum(true.sum(1), 1)
        return mean

    def micro(sums: np.ndarray) -> np.ndarray:
        return f1_of(sums.reshape(len(sums), 3, -1).sum(2))

    kinds = {
        "macro": (macro, "The mean F1 of the labels: a rare label counts as much as a frequent one."),
        "micro": (micro, "F1 of counts summed over the labels."),
        "weighted": (weighted, "The mean F1 of the labels, weighted by how often each is true."),
    }
    return [
        Measure(f"f1_{name}", flat, combine, explanation, unit="%", per_example=False)
        for name, (combine, explanation) in kinds.items()
    ]


@dataclass(frozen=True)
class Difference:
    """How much higher the first of two models scores, with a paired bootstrap interval.

    `p_value` is the share of resamples on the other side of 0, twice: the two-sided test that they are equal.
    """

    value: float
    interval: Interval
    p_value: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval.holds(0.0)


def difference(first: Measure, second: Measure, *, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """The difference of two models' scores on the same examples, by the paired bootstrap.

    Raises InputError if the two have different numbers of examples.
    """
    if first.count != second.count:
        raise InputError(
            f"{first.name}: one model was scored on {first.count:,} examples and the other on {second.count:,}; a "
            "paired comparison needs the same ones. Evaluate both with the same --limit and data."
        )
    one, other = (measure.resampled(seed=seed, resamples=resamples) for measure in (first, second))
    apart = (one - other)[np.isfinite(one - other)]
    if not len(apart):
        return Difference(first.value - second.value, Interval(math.nan, math.nan), math.nan)
    low, high = np.quantile(apart, (0.025, 0.975))
    below = min(float(np.mean(apart <= 0)), float(np.mean(apart >= 0)))
    return Difference(first.value - second.value, Interval(float(low), float(high)), min(1.0, 2 * below))


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two models' right and wrong answers: how many only one of them has right."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact two-sided test. Raises InputError for lists of different lengths."""
    if len(first) != len(second):
        raise InputError(f"McNemar: {len(first):,} answers of one model for {len(second):,} of the other.")
    one = sum(a and not b for a, b in zip(first, second, strict=True))
    other = sum(b and not a for a, b in zip(first, second, strict=True))
    apart, fewer = one + other, min(one, other)
    # log(0.5) * n avoids the overflow of 2 ** n for many examples.
    tail = sum(math.exp(_log_choose(apart, k) - apart * math.log(2)) for k in range(fewer + 1))
    return McNemar(one, other, min(1.0, 2 * tail) if apart else 1.0)


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def summary(measure: Measure, *, seed: int = 0) -> dict[str, Any]:
    """A measure as a result file stores it: name, value, interval, unit and explanation."""
    interval = measure.interval(seed=seed)
    return {
        "name": measure.name,
        "value": measure.value,
        "interval": [interval.low, interval.high],
        "unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        "explanation": measure.explanation,
    }


LOWER_IS_BETTER = ("loss", "perplexity", "bits", "ece", "error")
"""Parts of the names of scores of which less is better."""


def higher_is_better(name: str) -> bool:
    """Whether more of a score is better, by its name."""
    return not any(word in name for word in LOWER_IS_BETTER)


def is_below(value: float, baseline: float, *, higher_is_better: bool) -> bool:
    """Whether a score is worse than that of a baseline."""
    return value < baseline if higher_is_better else value > baseline


def shown(entry: Mapping[str, Any]) -> str:
    """The value of a stored measure as people read it: a share in per cent, other numbers with three decimals."""
    return shown_number(entry["value"], str(entry.get("unit", "")))


def shown_interval(entry: Mapping[str, Any]) -> str:
    """The interval of a stored measure; "–" where there is none."""
    low, high = (shown_number(end, str(entry.get("unit", ""))) for end in entry["interval"])
    return "–" if "–" in (low, high) else f"{low} to {high}"


def shown_number(number: float | None, unit: str) -> str:
    """A number of a measure in its unit."""
    if number is None or not math.isfinite(number):
        return "–"
    return f"{100 * number:.1f} %" if unit == "%" else f"{number:,.3f}"
