"""Best-of-n and rejection-sampling fine-tuning: the baselines that reinforcement learning has to beat.

Best-of-n draws n completions of a prompt and takes the one with the highest reward (Stiennon et al. 2020, arXiv
2009.01325): it needs n times the computing, and the reward, whenever the model is used. Rejection-sampling fine-tuning
puts the same selection into the weights: the model learns its own best completions by cross-entropy (RAFT, Dong et al.
2023, arXiv 2304.06767; RFT, Yuan et al. 2023, arXiv 2308.01825).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quatrain.alignment.policy import completion_states
from quatrain.alignment.rollouts import PolicyObjective, Prompt, Rollout, RolloutBatch, Sampler, Scores
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.training.chunked_loss import token_logprobs


@dataclass(frozen=True)
class BestOfN:
    """The best completion of each prompt, and what all of them are like.

    `mean` is the mean score of a single sample, `best` that of the best of each prompt.
    """

    completions: list[Rollout]
    mean: float
    best: float


def best_of_n(
    engine: Engine,
    prompts: Sequence[Prompt],
    rewards: Scores,
    params: SamplingParams,
    *,
    samples: int,
    seed: int = 0,
    rows: int = 64,
) -> BestOfN:
    """Draw `samples` completions of each prompt and take the one with the highest score, in the order of the prompts.

    Among equal scores the likeliest is taken. Raises InputError for fewer than one sample, RewardError for a broken
    reward.
    """
    if samples < 1:
        raise InputError(f"samples: {samples}; must be at least 1")
    sampler = Sampler(engine, prompts, rewards, params, samples=samples, seed=seed, rows=rows)
    rollouts = sampler.draw(0, range(len(prompts)))
    sampler.score(rollouts)
    best: dict[int, Rollout] = {}
    for rollout in rollouts:
        known = best.get(rollout.number)
        if known is None or _rank(rollout) > _rank(known):
            best[rollout.number] = rollout
    completions = [best[number] for number in range(len(prompts))]
    return BestOfN(
        completions,
        sum(rollout.score for rollout in rollouts) / len(rollouts),
        sum(rollout.score for rollout in completions) / len(completions),
    )


def _rank(rollout: Rollout) -> tuple[bool, float, float]:
    """Scorable ones first, then by score, then by likelihood."""
    likelihood = 0.0 if rollout.sampler_logprobs is None else float(rollout.sampler_logprobs.sum())
    return not rollout.unscorable, rollout.score, likelihood


class RejectionSampling(PolicyObjective):
    """Cross-entropy of the policy's own accepted completions, averaged over the tokens of an optimizer step.

    A completion is accepted if its score is at least `threshold`; without one, if it beats the mean of its group. Those
    cut at the limit teach never to end and are not accepted. Of a group's distinct accepted ones, at most `per_prompt`
    are learned, the highest scores first.
    """

    def __init__(
        self, *, threshold: float | None = None, per_prompt: int = 1, temperature: float = 1.0, pad_id: int = 0
    ):
        super().__init__(temperature=temperature, pad_id=pad_id)
        if per_prompt < 1:
            raise InputError(f"per_prompt: {per_prompt}; must be at least 1")
        self.threshold, self.per_prompt = threshold, per_prompt

    def advantages(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Mark the accepted completions of a phase as learned; the metrics say how many there are."""
        groups: dict[int, list[Rollout]] = {}
        for rollout in rollouts:
            groups.setdefault(rollout.group, []).append(rollout)
            rollout.learned = False
        accepted = 0
        for group in groups.values():
            distinct = {tuple(each.ids): each for each in sorted(group, key=_rank) if self._accepts(each, group)}
            accepted += len(distinct)
            for rollout in sorted(distinct.values(), key=_rank)[-self.per_prompt :]:
                rollout.learned = True
        best = [max(_rank(each) for each in group)[1] for group in groups.values()]
        return {
            "accepted": accepted / max(1, len(rollouts)),
            "learned": float(sum(rollout.learned for rollout in rollouts)),
            "reward_best": sum(best) / max(1, len(best)),
        }

    def _accepts(self, rollout: Rollout, group: Sequence[Rollout]) -> bool:
        if rollout.unscorable or not rollout.ended:
            return False
        if self.threshold is not None:
            return rollout.score >= self.threshold
        scores = [each.score for each in group if not each.unscorable]
        return rollout.score > sum(scores) / len(scores)

    def collate(self, rollouts: Sequence[Rollout]) -> RolloutBatch:
        """A micro-batch of the accepted ones; one row without labels if there is none."""
        return super().collate([rollout for rollout in rollouts if rollout.learned] or rollouts[:1])

    def loss(self, module: Any, batch: RolloutBatch) -> tuple[Tensor, int | Tensor, dict[str, float | Tensor]]:
        """The cross-entropy in nats, summed over tokens; the weight is their number."""
        states, labels, _ = completion_states(module, batch)
        logprobs, _ = token_logprobs(module, states, labels)
        return -logprobs.sum(), len(labels), {}

    def check_start(self, module: Any, batch: RolloutBatch) -> None:
        """Nothing to check: the loss has no ratio and no reference."""
