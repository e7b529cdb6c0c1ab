"""Scores as sums: equal to scikit-learn, intervals that hold the truth as often as they say, tests of two models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.evaluation.measures import Interval, difference, label_measures, mcnemar, mean_of, wilson

LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_label_measures_are_those_of_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    predictions, references = zip(*pairs, strict=True)
    found = {measure.name: measure.value for measure in label_measures(predictions, references)}
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(references, predictions))
    for average in ("macro", "micro", "weighted"):
        expected = metrics.f1_score(references, predictions, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(expected)


def test_a_resample_is_the_score_of_the_drawn_examples():
    """The weighted sum of rows is what counting the drawn examples gives."""
    predictions, references = list("aabbcab"), list("abbbcaa")
    macro = label_measures(predictions, references)[1]
    drawn = [0, 0, 3, 4, 4, 6, 2]
    weights = np.bincount(drawn, minlength=7).astype(float)
    again = label_measures([predictions[place] for place in drawn], [references[place] for place in drawn])[1]
    assert float(macro.combine(weights[None] @ macro.statistics)[0]) == pytest.approx(again.value)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_interval_holds_the_truth_as_often_as_it_says(share):
    """Of 200 samples of 150 examples, 95 % of the intervals hold the share they were drawn with, within noise."""
    generator = np.random.default_rng(1)
    held = sum(
        mean_of("acc", generator.random(150) < share).interval(resamples=400, seed=trial).holds(share)
        for trial in range(200)
    )
    assert 0.89 <= held / 200 <= 0.99


def test_the_interval_of_a_skewed_ratio_holds_the_truth():
    """Bits per byte: a ratio of sums over documents of very different lengths."""
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(150):
        sizes = generator.integers(10, 500, 120)
        losses = generator.normal(1.5, 0.3, 120) * sizes
        held += mean_of("bits", losses / sizes, weights=sizes, unit="").interval(resamples=400, seed=trial).holds(1.5)
    assert 0.88 <= held / 150 <= 1.0


def test_a_share_without_variation_has_wilsons_interval():
    interval = mean_of("acc", [1.0] * 20).interval()
    assert interval == wilson(1.0, 20) and interval.low < 0.9
    stats = pytest.importorskip("scipy.stats")
    exact = stats.binomtest(7, 20).proportion_ci(method="wilson")
    assert wilson(7 / 20, 20) == Interval(pytest.approx(exact.low, abs=1e-6), pytest.approx(exact.high, abs=1e-6))


def test_a_paired_difference_is_narrower_than_two_intervals():
    generator = np.random.default_rng(3)
    first = generator.random(300) < 0.6
    second = first.copy()
    second[:15] = ~second[:15]
    one, other = mean_of("acc", first), mean_of("acc", second)
    apart = difference(one, other)
    assert apart.value == pytest.approx(one.value - other.value)
    width = apart.interval.high - apart.interval.low
    assert width < one.interval().high - one.interval().low
    assert difference(one, one).interval == Interval(0.0, 0.0) and not difference(one, one).is_clear


def test_a_difference_of_unequal_counts_is_refused():
    with pytest.raises(InputError, match="same ones"):
        difference(mean_of("acc", [1.0] * 3), mean_of("acc", [1.0] * 4))


@pytest.mark.parametrize("only", [(0, 0), (5, 0), (9, 4), (700, 640)])
def test_mcnemar_is_the_binomial_test(only):
    stats = pytest.importorskip("scipy.stats")
    first = [True] * only[0] + [False] * only[1] + [True] * 3
    second = [False] * only[0] + [True] * only[1] + [True] * 3
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == only
    expected = stats.binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError):
        mcnemar([True], [])


def test_values_that_do_not_count_are_left_out():
    assert mean_of("acc", [1.0, math.nan, 0.0]).value == 0.5
