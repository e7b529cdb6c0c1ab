"""Proximal policy optimization of a language model (Schulman et al. 2017, arXiv 1707.06347).

As in Ziegler et al. 2019 (arXiv 1909.08593) and Ouyang et al. 2022 (arXiv 2203.02155): the score of a completion is the
reward of its last token; each token pays for its divergence from the reference; a value function on the policy's
hidden states gives the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.alignment.advantages import KLController, KLEstimator, gae, kl_estimates, whiten
from quatrain.alignment.policy import ActorCritic, Reference, completion_states
from quatrain.alignment.rollouts import TOLERANCE, PolicyObjective, Rollout, RolloutBatch, padded
from quatrain.core.errors import InputError, QuatrainError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.training.chunked_loss import Entropy, token_logprobs


@dataclass(frozen=True)
class PPOConfig:
    """The coefficients of PPO. Raises InputError, all problems at once, for values out of range."""

    clip: float = 0.2
    """The ratio of new to old probabilities counts at most as 1 ± clip."""
    value_clip: float = 0.2
    """A value counts as at most so far from its value when the rollout was drawn; 0: not clipped."""
    value_coef: float = 0.1
    """The weight of the value loss."""
    entropy_coef: float = 0.0
    """The weight of the mean entropy, which is maximized."""
    gamma: float = 1.0
    """The discount of later rewards per token."""
    lam: float = 0.95
    """The λ of generalized advantage estimation."""
    kl_coef: float = 0.05
    """What a nat of divergence from the reference costs; 0: there is no reference."""
    kl_estimator: KLEstimator = "k1"
    """The estimate of the divergence per token; see `advantages.kl_estimates`."""
    kl_target: float | None = None
    """Adapts kl_coef so that the divergence of a completion is near to so many nats; None: it is fixed."""
    kl_horizon: int = 10_000
    """Completions in which an adaptive kl_coef changes by up to 20 %."""
    whiten_advantages: bool = True
    """Scale the advantages of a phase to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Scale the rewards of a phase's tokens to variance 1, without moving their mean."""
    missing_end_penalty: float = 0.0
    """Subtracted from the score of a completion that was cut at the limit of tokens."""

    def __post_init__(self) -> None:
        limits = {
            "clip": (0.0, 1.0, False),
            "value_clip": (0.0, float("inf"), True),
            "value_coef": (0.0, float("inf"), True),
            "entropy_coef": (0.0, float("inf"), True),
            "gamma": (0.0, 1.0, True),
            "lam": (0.0, 1.0, True),
            "kl_coef": (0.0, float("inf"), True),
            "missing_end_penalty": (0.0, float("inf"), True),
        }
        problems = []
        for name, (least, most, included) in limits.items():
            value = getattr(self, name)
            if not ((least <= value if included else least < value) and value <= most):
                bounds = f"{'at least' if included else 'above'} {least:g}"
                bounds += f" and at most {most:g}" if most < float("inf") else ""
                problems.append(f"{name}: {value}; must be {bounds}")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coef > 0):
            problems.append(f"kl_target: {self.kl_target}; must be above 0, with kl_coef above 0")
        if problems:
            raise InputError("PPO cannot be set up:", problems)


class PPO(PolicyObjective):
    """The clipped policy and value losses of rollouts, averaged over the tokens of an optimizer step.

    `reference` is needed with kl_coef above 0. `loss` takes an `ActorCritic`.
    """

    def __init__(
        self,
        config: PPOConfig | None = None,
        *,
        temperature: float = 1.0,
        pad_id: int = 0,
        reference: Reference | None = None,
    ):
        super().__init__(temperature=temperature, pad_id=pad_id, reference=reference)
        self.config = config = config or PPOConfig()
        if config.kl_coef and reference is None:
            raise InputError(f"kl_coef: {config.kl_coef}; a penalty needs a reference model, or kl_coef = 0")
        self.kl = KLController(config.kl_coef, config.kl_target, config.kl_horizon)

    def measure_states(self, module: nn.Module, batch: RolloutBatch, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The values of the weights that drew the rollouts."""
        actor: Any = module
        return {"values": actor.value(batch, states, mask)}

    def advantages(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Rewards per token, advantages and returns of a phase; adapts the coefficient of the KL penalty."""
        config = self.config
        values, mask = padded(rollouts, "values")
        rewards = self.token_rewards(rollouts, mask)
        learned = mask & torch.tensor([rollout.learned for rollout in rollouts])[:, None]
        if config.whiten_rewards:
            rewards = whiten(rewards, learned, shift=False)
        advantages = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        returns = advantages + values.double()
        if config.whiten_advantages:
            advantages = whiten(advantages, learned)
        metrics = {"kl_coef": self.kl.coefficient, "value": float(values[mask].double().mean())}
        for row, rollout in enumerate(rollouts):
            length = len(rollout.ids)
            rollout.advantages, rollout.returns = advantages[row, :length].float(), returns[row, :length].float()
        if all(rollout.reference_logprobs is not None for rollout in rollouts):
            old, reference = padded(rollouts, "old_logprobs")[0], padded(rollouts, "reference_logprobs")[0]
            self.kl.update(float((old - reference).double().sum(1).mean()), len(rollouts))
        return metrics

    def token_rewards(self, rollouts: Sequence[Rollout], mask: Tensor) -> Tensor:
        """Rewards (N, L) in float64: the score on the last token, and minus the KL penalty on every token."""
        config = self.config
        rewards = torch.zeros(mask.shape, dtype=torch.float64)
        if self.reference is not None and config.kl_coef:
            old, reference = padded(rollouts, "old_logprobs")[0], padded(rollouts, "reference_logprobs")[0]
            divergence = kl_estimates(old.double(), reference.double(), config.kl_estimator)
            rewards = torch.where(mask, -self.kl.coefficient * divergence, 0.0)
        for row, rollout in enumerate(rollouts):
            score = rollout.score - (0.0 if rollout.ended else config.missing_end_penalty)
            rewards[row, len(rollout.ids) - 1] += score
        return rewards

    def loss(self, module: ActorCritic, batch: RolloutBatch) -> tuple[Tensor, int, dict[str, float | Tensor]]:
        """The loss summed over the completions' tokens, their number, and sums of its parts.

        With A the advantage and r the ratio, a token's policy loss is max(-A r, -A clip(r)); its value loss is half the
        larger squared error of the value and the clipped value.
        """
        config = self.config
        old, advantages, old_values, returns = _columns(batch)
        states, labels, mask = completion_states(module.policy, batch)
        learned: Entropy = "learned" if config.entropy_coef else "value"
        logprobs, entropy = token_logprobs(module.policy, states, labels, self.temperature, entropy=learned)
        old, advantages, old_values, returns = (each[mask] for each in (old, advantages, old_values, returns))
        change = logprobs - old
        ratio = change.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        policy_loss = torch.maximum(-advantages * ratio, -advantages * clipped)
        values = module.value(batch, states, mask)
        errors = (values - returns).square()
        outside = torch.zeros_like(errors, dtype=torch.bool)
        if config.value_clip:
            near = old_values + (values - old_values).clamp(-config.value_clip, config.value_clip)
            near_errors = (near - returns).square()
            outside = near_errors > errors
            errors = torch.maximum(errors, near_errors)
        value_loss = errors / 2
        losses = policy_loss + config.value_coef * value_loss
        if config.entropy_coef:
            losses = losses - config.entropy_coef * entropy
        with torch.no_grad():
            metrics: dict[str, float | Tensor] = {
                "policy_loss": policy_loss.sum(),
                "value_loss": value_loss.sum(),
                "policy_entropy": entropy.sum(),
                "ratio": ratio.sum(),
                "clip_fraction": (policy_loss > -advantages * ratio).sum(),
                "value_clip_fraction": outside.sum(),
                "policy_kl": kl_estimates(old, logprobs, "k3").sum(),
            }
        return losses.sum(), len(labels), metrics

    def check_start(self, module: nn.Module, batch: RolloutBatch) -> None:
        """Check that the ratio is 1, the KL 0, and the policy loss the negative mean advantage."""
        super().check_start(module, batch)
        actor: Any = module
        _, count, metrics = self.loss(actor, batch)
        _, advantages, _, _ = _columns(batch)
        expected = -float(advantages[batch.labels != IGNORE_INDEX].double().sum())
        gap = abs(float(metrics["policy_loss"]) - expected) / max(1, count)
        if not gap <= TOLERANCE:
            raise QuatrainError(
                f"Before the first step PPO's policy loss is {float(metrics['policy_loss']) / max(1, count):.6g}; the "
                f"negative mean advantage is {expected / max(1, count):.6g}. They must be equal while the ratio is 1."
            )

    def state(self) -> dict[str, Any]:
        return {"kl": self.kl.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kl.load_state(state["kl"])


def _columns(batch: RolloutBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old log-probabilities, advantages, old values and returns (B, T). Raises ValueError if one is missing."""
    columns = (batch.old_logprobs, batch.advantages, batch.values, batch.returns)
    if any(column is None for column in columns):
        raise ValueError("these rollouts have no values and advantages; a RolloutStream computes them")
    return columns  # type: ignore[return-value]
