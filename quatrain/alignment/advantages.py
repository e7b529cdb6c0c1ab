"""From rewards and values to advantages: generalized advantage estimation, whitening, estimators of the KL divergence.

Schulman et al. 2016 (arXiv 1506.02438) for GAE; Ziegler et al. 2019 (arXiv 1909.08593) for the KL penalty per token and
its adaptive coefficient; Schulman 2020, "Approximating KL divergence", for the estimators k1, k2 and k3.

All functions take a mask: values outside it are not read, not even as a factor, so that NaN there changes nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.core.errors import InputError

KLEstimator = Literal["k1", "k2", "k3"]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalized advantage estimates (N, T) in float64 of rewards and values (N, T); 0 outside the mask (N, T).

    The step after a masked token is the next token inside the mask; after the last one there is none, so that no value
    outside the mask bootstraps an advantage.

    >>> gae(torch.tensor([[0., 1, 0]]), torch.tensor([[0., 0, 100]]), torch.tensor([[True, True, False]]))
    tensor([[0.9500, 1.0000, 0.0000]], dtype=torch.float64)
    """
    rewards, values = (torch.where(mask, each, 0.0).double() for each in (rewards, values))
    advantages = torch.zeros_like(rewards)
    following = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    next_value = following.clone()
    for step in reversed(range(rewards.shape[1])):
        inside = mask[:, step]
        surprise = rewards[:, step] + gamma * next_value - values[:, step]
        following = torch.where(inside, surprise + gamma * lam * following, following)
        next_value = torch.where(inside, values[:, step], next_value)
        advantages[:, step] = torch.where(inside, following, 0.0)
    return advantages


def whiten(values: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """Values (N, T) scaled to variance 1 and, with `shift`, to mean 0 over the mask; 0 outside it.

    The variance is the unbiased one; fewer than two values, or equal ones, are only shifted.
    """
    inside = values[mask]
    if not len(inside):
        return torch.zeros_like(values)
    mean = inside.mean()
    deviation = inside.std() if len(inside) > 1 else torch.ones_like(mean)
    scaled = (inside - mean) / (deviation + 1e-8) if float(deviation) > 0 else inside - mean
    result = torch.zeros_like(values)
    result[mask] = scaled if shift else scaled + mean
    return result


def kl_estimates(logprobs: Tensor, reference: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Estimates, per token, of KL(policy || reference) from tokens that the policy drew; positive on average.

    With r = log p - log q: k1 = r, k2 = r² / 2, k3 = exp(-r) - 1 + r. k2 and k3 are never negative.
    """
    ratio = logprobs - reference
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio.square() / 2
    if estimator == "k3":
        return torch.expm1(-ratio) + ratio
    raise InputError(f'kl_estimator: {estimator!r}; must be "k1", "k2" or "k3"')


class KLController:
    """The coefficient of the KL penalty: fixed, or adapted to a target in nats per completion.

    The adaptive one grows by up to 20 % in `horizon` completions while the KL is above the target, and shrinks below
    it (Ziegler et al., section 2.2).
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: int = 10_000):
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Adapt to the mean KL of so many completions."""
        if self.target is not None:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.coefficient *= 1.0 + error * completions / self.horizon

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]
