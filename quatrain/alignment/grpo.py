"""Policy-gradient losses on groups of sampled completions: GRPO and its kin (`quatrain.alignment.variants`).

The loss sees completion tokens alone, as flat tensors: no padding can enter a mean. It returns an undivided sum and its
weight, so that a mean is over the whole optimizer step and does not depend on its micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.alignment.policy import Reference, completion_states
from quatrain.alignment.rollouts import PolicyObjective, Rollout, RolloutBatch, RolloutPlan
from quatrain.alignment.variants import PolicyVariant, variant
from quatrain.core.errors import InputError
from quatrain.training.chunked_loss import token_logprobs

EPSILON = 1e-4
"""Added to the standard deviation that divides advantages, as in TRL."""


@dataclass(frozen=True)
class GroupAdvantages:
    """The advantages (N,) of completions, and what their groups are like."""

    values: Tensor
    groups: int
    without_spread: int
    """Groups whose scorable rewards are all equal: their advantages are exactly 0."""


def group_advantages(rewards: Tensor, groups: Tensor, settings: PolicyVariant) -> GroupAdvantages:
    """The advantage of each completion from the rewards (N,) of all completions with the same number in `groups` (N,).

    A reward of NaN could not be scored: it takes no part in a baseline, and its advantage is 0. With
    `baseline = "none"` and `"batch_mean"` a group without spread still teaches, so its advantages stay.
    """
    values = rewards.double()
    scorable = ~values.isnan()
    filled = values.masked_fill(~scorable, 0.0)
    _, index = groups.unique(return_inverse=True)
    number = int(index.max()) + 1 if len(index) else 0

    def summed(terms: Tensor) -> Tensor:
        return torch.zeros(number, dtype=torch.float64, device=values.device).index_add_(0, index, terms)

    counts = summed(scorable.double())
    means = summed(filled) / counts.clamp(min=1)
    total = scorable.sum().clamp(min=1)
    batch_mean = filled.sum() / total
    infinite = torch.full((number,), math.inf, dtype=torch.float64, device=values.device)
    lowest = infinite.clone().scatter_reduce_(0, index, values.masked_fill(~scorable, math.inf), "amin")
    highest = (-infinite).scatter_reduce_(0, index, values.masked_fill(~scorable, -math.inf), "amax")
    flat = lowest >= highest
    if settings.baseline == "group_mean":
        advantages = values - means[index]
    elif settings.baseline == "leave_one_out":
        others = counts[index] - 1
        advantages = values - (counts[index] * means[index] - filled) / others.clamp(min=1)
        advantages = advantages.masked_fill(others < 1, 0.0)
    else:
        advantages = values - (batch_mean if settings.baseline == "batch_mean" else 0.0)
    if settings.baseline in ("group_mean", "leave_one_out"):
        advantages = advantages.masked_fill(flat[index], 0.0)
    if settings.scale == "group":
        squares = summed((filled - means[index]).square() * scorable)
        advantages = advantages / ((squares / (counts - 1).clamp(min=1)).sqrt()[index] + EPSILON)
    elif settings.scale == "batch":
        squares = ((filled - batch_mean).square() * scorable).sum()
        advantages = advantages / ((squares / (total - 1).clamp(min=1)).sqrt() + EPSILON)
    advantages = advantages.masked_fill(~scorable, 0.0)
    return GroupAdvantages(advantages.float(), number, int(flat.sum()))


def overlong_penalty(lengths: Tensor, limit: int, buffer: float) -> Tensor:
    """What DAPO adds to the reward of completions of these lengths (N,): 0 up to the buffer's start, -1 at the limit.

    `buffer` is the share of the `limit` tokens in which the penalty grows linearly; 0 for no penalty.
    """
    width = buffer * limit
    if not width:
        return torch.zeros(len(lengths))
    return -((lengths - (limit - width)) / width).clamp(0.0, 1.0)


@dataclass(frozen=True)
class PolicyTokens:
    """The completion tokens of a micro-batch of B completions, N in all, without padding.

    `logprobs` (N,) are those of the policy that learns; `old` (N,) of the policy at the time of sampling; `owners` (N,)
    the completion that each token belongs to; `advantages` (B,). `sampler` (N,) are the engine's log-probabilities and
    `reference` (N,) those of the reference model, where the variant needs them. `limit` is the most tokens that a
    completion may have. Tokens of the same completion may be in any order.
    """

    logprobs: Tensor
    old: Tensor
    owners: Tensor
    advantages: Tensor
    sampler: Tensor | None = None
    reference: Tensor | None = None
    limit: int = 1

    @property
    def rows(self) -> int:
        """The number of completions."""
        return len(self.advantages)

    def row_sums(self, terms: Tensor) -> Tensor:
        """The sum (B,) of the terms (N,) of each completion's tokens."""
        return torch.zeros(self.rows, dtype=terms.dtype, device=terms.device).index_add(0, self.owners, terms)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens (B,) of each completion."""
        return self.row_sums(torch.ones_like(self.logprobs))

    def mean_weights(self, settings: PolicyVariant) -> Tensor:
        """The weight (N,) of each token in metrics: with the weight of the loss they give a mean."""
        if settings.aggregation == "token_mean":
            return torch.ones_like(self.logprobs)
        return 1 / self.lengths[self.owners]


def policy_loss(settings: PolicyVariant, tokens: PolicyTokens) -> tuple[Tensor, int, dict[str, float | Tensor]]:
    """The loss summed over the tokens, the weight that divides it, and metrics summed in the same way.

    Raises ValueError where the variant needs log-probabilities of the sampler or the reference that are missing.
    """
    lengths = tokens.lengths
    owners = tokens.owners
    advantages = tokens.advantages[owners]
    log_ratio = tokens.logprobs - tokens.old
    if settings.ratio != "token":
        log_ratio = tokens.row_sums(log_ratio)
        if settings.ratio == "sequence_mean":
            log_ratio = log_ratio / lengths.clamp(min=1)
        log_ratio = log_ratio[owners]
    ratio = log_ratio.exp()
    clipped = torch.zeros_like(ratio, dtype=torch.bool)
    if settings.surrogate == "clip":
        bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        losses = -torch.minimum(ratio * advantages, bounded * advantages)
        clipped = ((ratio < 1 - settings.clip_low) & (advantages < 0)) | (
            (ratio > 1 + settings.clip_high) & (advantages > 0)
        )
    elif settings.surrogate == "truncate":
        losses = -ratio.detach().clamp(max=1 + settings.clip_high) * advantages * tokens.logprobs
        clipped = (ratio > 1 + settings.clip_high) & (advantages > 0)
    else:
        losses = -advantages * tokens.logprobs
    if settings.correction != "none":
        losses = losses * _correction(settings, tokens)
    divergence = None
    if tokens.reference is not None:
        difference = tokens.reference - tokens.logprobs
        divergence = difference.exp() - difference - 1
        if settings.kl_in == "loss" and settings.kl_coef:
            losses = losses + settings.kl_coef * divergence * (ratio if settings.kl_weighted else 1.0)
    elif settings.kl_coef:
        raise ValueError("kl_coef needs the log-probabilities of the reference model")
    weights = mean_weights = tokens.mean_weights(settings)
    if settings.aggregation == "constant":
        weights = torch.full_like(losses, 1 / tokens.limit)
    elif settings.aggregation == "sequence_sum":
        weights = torch.ones_like(losses)
    metrics: dict[str, float | Tensor] = {
        "ratio": (ratio.detach() * mean_weights).sum(),
        "clip_fraction": (clipped * mean_weights).sum(),
    }
    if divergence is not None:
        metrics["kl"] = (divergence.detach() * mean_weights).sum()
    return (losses * weights).sum(), len(losses) if settings.aggregation == "token_mean" else tokens.rows, metrics


def _correction(settings: PolicyVariant, tokens: PolicyTokens) -> Tensor:
    """The weight (N,) of each token from the ratio of the trainer's to the sampler's probability."""
    if tokens.sampler is None:
        raise ValueError(f"correction = {settings.correction!r} needs the log-probabilities of the sampler")
    difference = (tokens.old - tokens.sampler).detach()
    level, _, action = settings.correction.partition("_")
    if level == "sequence":
        difference = tokens.row_sums(difference)[tokens.owners]
    ratio = difference.exp()
    if action == "truncate":
        return ratio.clamp(max=settings.correction_limit)
    return ratio.masked_fill(ratio > settings.correction_limit, 0.0)


class GRPO(PolicyObjective):
    """The loss of a `PolicyVariant` on rollouts, an objective of the trainer.

    `limit` is the most new tokens of a completion. `reference` is needed with kl_coef above 0.
    """

    def __init__(
        self,
        settings: PolicyVariant | str = "grpo",
        *,
        limit: int,
        temperature: float = 1.0,
        pad_id: int = 0,
        reference: Reference | None = None,
    ):
        super().__init__(temperature=temperature, pad_id=pad_id, reference=reference)
        self.settings = variant(settings) if isinstance(settings, str) else settings
        self.limit = limit
        if self.settings.kl_coef and reference is None:
            raise InputError(f"kl_coef: {self.settings.kl_coef}; a penalty needs a reference model, or kl_coef = 0")

    def measures(self, plan: RolloutPlan) -> bool:
        """With one optimizer step per phase the old policy is the current one, whose log-probabilities the loss has."""
        return plan.steps > 1 or self.reference is not None

    def keeps(self, group: Sequence[Rollout]) -> bool:
        """Whether a group teaches something: its rewards differ. Always true without dynamic sampling."""
        if not self.settings.dynamic_sampling:
            return True
        scores = {rollout.score for rollout in group if not rollout.unscorable}
        return len(scores) > 1

    def advantages(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Set the advantages of a phase from the rewards of its groups. Truncated completions may be left out."""
        settings = self.settings
        rewards = torch.tensor([each.score for each in rollouts], dtype=torch.float64)
        lengths = torch.tensor([len(each.ids) for each in rollouts])
        rewards += overlong_penalty(lengths, self.limit, settings.overlong_buffer)
        if settings.kl_in == "reward" and settings.kl_coef:
            rewards -= settings.kl_coef * torch.stack([_log_ratio(each) for each in rollouts])
        rewards[torch.tensor([each.unscorable for each in rollouts])] = math.nan
        groups = group_advantages(rewards, torch.tensor([each.group for each in rollouts]), settings)
        truncated = 0
        for rollout, value in zip(rollouts, groups.values.tolist(), strict=True):
            rollout.advantages = torch.full((len(rollout.ids),), value)
            if settings.mask_truncated and not rollout.ended:
                rollout.learned, truncated = False, truncated + 1
        metrics = {"groups_without_spread": groups.without_spread / max(1, groups.groups)}
        return metrics | ({"truncated_left_out": float(truncated)} if settings.mask_truncated else {})

    def loss(self, module: Any, batch: RolloutBatch) -> tuple[Tensor, int, dict[str, float | Tensor]]:
        """The variant's loss summed over the completions' tokens, its weight, and metrics summed alike."""
        states, labels, mask = completion_states(module, batch)
        logprobs, entropy = token_logprobs(module, states, labels, self.temperature, entropy="value")
        owners, advantages = mask.nonzero()[:, 0], batch.advantages
        if advantages is None:
            raise ValueError("these rollouts have no advantages; a RolloutStream computes them")
        per_row = advantages.new_zeros(len(mask)).index_copy(0, owners, advantages[mask])
        tokens = PolicyTokens(
            logprobs,
            logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[mask],
            owners,
            per_row,
            sampler=None if batch.sampler_logprobs is None else batch.sampler_logprobs[mask],
            reference=None if batch.reference_logprobs is None else batch.reference_logprobs[mask],
            limit=self.limit,
        )
        total, weight, metrics = policy_loss(self.settings, tokens)
        metrics["entropy"] = (entropy * tokens.mean_weights(self.settings)).sum()
        return total, weight, metrics


def _log_ratio(rollout: Rollout) -> Tensor:
    """log p - log p_ref of a whole completion."""
    if rollout.old_logprobs is None or rollout.reference_logprobs is None:
        raise ValueError("this rollout has no log-probabilities of the reference model")
    return (rollout.old_logprobs.double() - rollout.reference_logprobs.double()).sum()
