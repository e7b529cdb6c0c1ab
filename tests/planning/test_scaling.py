"""Scaling laws: published constants and tables, the refit of the paper's figure, and laws recovered from points."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.planning.scaling import (
    APPROACH_1,
    EPOCH,
    HOFFMANN,
    KAPLAN,
    OPTIMA,
    ParametricLaw,
    bootstrapped,
    compare_with_optimum,
    fit,
    iso_flop_minimum,
)

FACTS = Path(os.environ.get("QUATRAIN_DATA") or "absent") / "facts"
needs_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="QUATRAIN_DATA holds no facts/")


def rows(name: str) -> list[dict[str, str]]:
    with (FACTS / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_facts
def test_the_published_optima() -> None:
    """Tables 3 and A3 of Hoffmann et al.: the optimal tokens of a model size by approaches 1 and 2."""
    laws = {"1": APPROACH_1, "2": OPTIMA["approach 2"]}
    for row in rows("chinchilla_compute_optimal.csv"):
        if row["approach"] in laws:
            found = laws[row["approach"]].optimal_tokens(float(row["params"]))
            assert found == pytest.approx(float(row["tokens"]), rel=0.12), row


@needs_facts
def test_the_constants_of_approach_3_do_not_give_its_table() -> None:
    """Besiroglu et al. 2024 found it: the published, rounded constants disagree with the paper's own table."""
    table = {float(row["params"]): float(row["tokens"]) for row in rows("chinchilla_compute_optimal.csv")
             if row["approach"] == "3"}  # fmt: skip
    ratios = [HOFFMANN.optimal_tokens(size) / tokens for size, tokens in table.items()]
    assert min(ratios) > 1.3 and max(ratios) < 3
    assert HOFFMANN.optimal_tokens(70e9) / 70e9 > 80 and 15 < EPOCH.optimal_tokens(70e9) / 70e9 < 25


@pytest.mark.parametrize("law", list(OPTIMA.values()), ids=list(OPTIMA))
@given(size=st.floats(6, 13))
def test_an_optimum_is_its_own_inverse(law, size: float) -> None:
    tokens = law.optimal_tokens(10**size)
    parameters, again = law.optimal(6 * 10**size * tokens)
    assert parameters == pytest.approx(10**size, rel=1e-6) and again == pytest.approx(tokens, rel=1e-6)


@given(st.floats(17, 27), st.floats(-1.5, 1.5).filter(lambda step: abs(step) > 0.05))
def test_nothing_is_better_than_the_optimum(exponent: float, step: float) -> None:
    budget = 10**exponent
    for law in (HOFFMANN, EPOCH):
        parameters, tokens = law.optimal(budget)
        assert 6 * parameters * tokens == pytest.approx(budget)
        other = parameters * 10**step
        assert law.loss(other, budget / (6 * other)) > law.loss(parameters, tokens)


def test_chinchilla_and_its_contemporaries() -> None:
    found = {each.name: each for each in compare_with_optimum(APPROACH_1)}
    assert found["Chinchilla"].optimal_parameters == pytest.approx(70e9, rel=0.1)
    assert found["GPT-3"].over_training < 0.3 and found["OPT"].over_training < 0.3  # too few tokens for their size
    assert found["BLOOM"].over_training < 0.4 and found["Llama 3.1 8B"].over_training > 5
    assert found["LLaMA-65B"].over_training == pytest.approx(1, abs=0.15)
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.937, abs=0.005)


def test_kaplan() -> None:
    assert KAPLAN.of_parameters(1.5e9) == pytest.approx((8.8e13 / 1.5e9) ** 0.076)
    assert KAPLAN.loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-6)  # data without end
    parameters, tokens = KAPLAN.optimal(3.14e23)
    assert parameters > 4 * APPROACH_1.optimal(3.14e23)[0]  # larger models, trained on less
    assert parameters * tokens * 6 == pytest.approx(3.14e23)


def test_tokens_for_a_loss() -> None:
    tokens = EPOCH.tokens_for(1e9, 2.5)
    assert EPOCH.loss(1e9, tokens) == pytest.approx(2.5)
    assert EPOCH.tokens_for(1e6, 1.9) == float("inf")


@needs_facts
@pytest.mark.slow
def test_the_refit_of_the_figure() -> None:
    """Besiroglu et al. 2024: without the five highest losses the law of the paper's runs; with them it misleads."""
    points = rows("chinchilla_fig4_extracted.csv")
    sizes, flops, losses = (
        np.array([float(row[name]) for row in points]) for name in ("Model Size", "Training FLOP", "loss")
    )
    tokens = flops / (6 * sizes)
    whole = fit(sizes, tokens, losses)
    assert (whole.points, round(whole.law.E, 3), round(whole.law.beta, 3)) == (245, 1.891, 0.453)
    kept = np.argsort(-losses)[5:]
    refit = fit(sizes[kept], tokens[kept], losses[kept], bootstrap=8)
    assert abs(refit.law.E - 1.8172) <= 0.002
    assert refit.law.alpha == pytest.approx(0.3473, abs=0.003) and refit.law.beta == pytest.approx(0.3672, abs=0.003)
    assert refit.objective < 0.6 * whole.objective
    assert 0.01 < refit.errors["E"] < 0.1 and refit.interval("E")[0] < 1.8172 < refit.interval("E")[1]


@pytest.mark.parametrize(
    "law", [ParametricLaw(1.7, 400.0, 900.0, 0.34, 0.31), ParametricLaw(0.9, 120.0, 60.0, 0.28, 0.24)]
)
def test_a_law_is_recovered_from_its_points(law: ParametricLaw) -> None:
    generator = np.random.default_rng(0)
    sizes, tokens = 10 ** generator.uniform(6, 9, 24), 10 ** generator.uniform(7.5, 10.5, 24)
    losses = [law.loss(n, d) for n, d in zip(sizes, tokens, strict=True)]
    found = fit(sizes, tokens, losses).law
    for name in ("E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.01), name


def test_the_interval_of_a_noisy_fit_holds_the_law() -> None:
    law, generator = ParametricLaw(1.7, 400.0, 900.0, 0.34, 0.31), np.random.default_rng(2)
    sizes, tokens = 10 ** generator.uniform(6, 9, 24), 10 ** generator.uniform(7.5, 10.5, 24)
    losses = np.array([law.loss(n, d) for n, d in zip(sizes, tokens, strict=True)])
    noisy = fit(sizes, tokens, losses * np.exp(generator.normal(0, 2e-3, 24)), bootstrap=6)
    low, high = noisy.interval("alpha")
    assert low - 0.02 < law.alpha < high + 0.02 and high - low > 0.005


def test_an_outlier_barely_moves_a_fit() -> None:
    law, generator = ParametricLaw(1.7, 400.0, 900.0, 0.34, 0.31), np.random.default_rng(1)
    sizes, tokens = 10 ** generator.uniform(6, 9, 24), 10 ** generator.uniform(7.5, 10.5, 24)
    losses = np.array([law.loss(n, d) for n, d in zip(sizes, tokens, strict=True)])
    losses[3] *= 1.5
    assert fit(sizes, tokens, losses).law.alpha == pytest.approx(0.34, abs=0.01)


def test_losses_without_a_law_give_one_that_can_be_asked() -> None:
    """Two sizes after one to three steps, where the larger one is worse: 4.1e165 was once the exponent of N."""
    sizes = [1944.0, 1944.0, 4400.0, 1944.0, 4400.0, 4400.0]
    tokens = [128.0, 256.0, 128.0, 384.0, 256.0, 384.0]
    losses = [2.78124885929441, 2.78124885929441, 2.8009669299264557, 2.75527788319634, 2.8009669299264557, 2.7437609]
    law = fit(sizes, tokens, losses).law
    assert 1e-3 <= law.alpha <= 4 and 1e-3 <= law.beta <= 4
    assert law.loss(8000, 384) == pytest.approx(2.76, abs=0.05)


def test_iso_flop_minimum() -> None:
    budget = 1e19
    sizes = [HOFFMANN.optimal(budget)[0] * 2.0**step for step in (-2, -1, 0, 1, 2)]
    losses = [HOFFMANN.loss(n, budget / (6 * n)) for n in sizes]
    found = iso_flop_minimum(budget, sizes, losses)
    assert found.inside and found.parameters == pytest.approx(sizes[2], rel=0.15)
    assert not iso_flop_minimum(budget, [*sizes[3:], sizes[4] * 2], [2.0, 2.1, 2.25]).inside
    with pytest.raises(InputError, match="at least 3"):
        iso_flop_minimum(budget, sizes[:2], losses[:2])


@pytest.mark.parametrize(
    ("values", "words"),
    [(([1e6] * 5, [1e7] * 5, [3.0] * 5), "5 runs"), (([1e6] * 6, [1e7] * 6, [0.0] * 6), "positive"),
     (([1e6] * 6, [float("nan")] * 6, [3.0] * 6), "positive")],
)  # fmt: skip
def test_runs_that_cannot_be_fitted(values, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit(*values)


def test_bootstrap_intervals_cover() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        sample = generator.normal(3.0, 1.0, 40)
        low, high = bootstrapped(lambda indices, sample=sample: float(sample[indices].mean()), 40, seed=trial)
        covered += low <= 3.0 <= high
    assert covered >= 50  # 95 % of 60 is 57
