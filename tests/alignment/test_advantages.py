"""Advantages, whitening and KL estimates: plain float64 loops, and masks that hide NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.alignment.advantages import KLController, gae, kl_estimates, whiten
from quatrain.core.errors import InputError


def gae_by_hand(rewards, values, mask, gamma, lam):
    """One row: the tokens inside the mask are all that there is."""
    inside = [index for index, learned in enumerate(mask) if learned]
    result = [0.0] * len(mask)
    following = 0.0
    for place in reversed(range(len(inside))):
        here = inside[place]
        after = values[inside[place + 1]] if place + 1 < len(inside) else 0.0
        following = rewards[here] + gamma * after - values[here] + gamma * lam * following
        result[here] = following
    return result


def test_a_masked_value_does_not_bootstrap():
    mask = torch.tensor([[True, True, False]])
    for masked in (100.0, math.nan, math.inf):
        advantages = gae(torch.tensor([[0.0, 1, masked]]), torch.tensor([[0.0, 0, masked]]), mask, lam=0.95)
        assert advantages.tolist() == [[0.95, 1.0, 0.0]]


@given(seed=st.integers(0, 100), gamma=st.sampled_from([1.0, 0.9]), lam=st.sampled_from([0.0, 0.95, 1.0]))
@settings(max_examples=20, deadline=None)
def test_gae_equals_a_loop(seed, gamma, lam):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 6, generator=generator) < 0.7
    poisoned = values.masked_fill(~mask, math.nan)
    advantages = gae(rewards, poisoned, mask, gamma=gamma, lam=lam)
    for row in range(3):
        expected = gae_by_hand(*(each[row].tolist() for each in (rewards, values, mask)), gamma, lam)
        assert advantages[row].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("poison", [100.0, math.nan])
def test_whitening_does_not_count_padding(poison):
    values = torch.tensor([[1.0, 2.0, poison], [4.0, poison, poison]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean, deviation = 7 / 3, math.sqrt(sum((each - 7 / 3) ** 2 for each in (1, 2, 4)) / 2)
    whitened = whiten(values, mask)
    assert whitened[mask].tolist() == pytest.approx([(each - mean) / deviation for each in (1, 2, 4)], abs=1e-6)
    assert whitened[~mask].tolist() == [0.0, 0.0, 0.0]
    assert whiten(values, mask, shift=False)[mask].mean() == pytest.approx(mean, abs=1e-6)


def test_whitening_of_equal_values_is_finite():
    ones = torch.ones(2, 2)
    assert whiten(ones, ones.bool()).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert whiten(ones, torch.tensor([[True, False], [False, False]])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert whiten(ones, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_kl_estimates_have_the_sign_and_the_mean_of_the_divergence():
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    exact = float((policy.exp() * (policy - reference)).sum())
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    for estimator in ("k1", "k3"):
        estimates = kl_estimates(policy[drawn], reference[drawn], estimator)
        assert float(estimates.mean()) == pytest.approx(exact, rel=0.05)
    assert float(kl_estimates(policy[drawn], reference[drawn], "k2").mean()) > 0
    assert (kl_estimates(policy, reference, "k3") >= 0).all() and (kl_estimates(policy, reference, "k2") >= 0).all()
    with pytest.raises(InputError, match="kl_estimator"):
        kl_estimates(policy, reference, "k4")


def test_the_adaptive_coefficient_follows_its_target():
    fixed, adaptive = KLController(0.1), KLController(0.1, target=6.0, horizon=100)
    for controller in (fixed, adaptive):
        controller.update(60.0, 50)
    assert fixed.coefficient == 0.1
    assert adaptive.coefficient == pytest.approx(0.1 * (1 + 0.2 * 50 / 100))
    adaptive.update(5.7, 100)
    assert adaptive.coefficient == pytest.approx(0.1 * 1.1 * 0.95)
