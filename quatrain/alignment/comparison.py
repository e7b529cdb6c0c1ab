"""What a policy writes before and after its alignment, on the same held-out prompts with the same seeds.

The rewards, and true metrics that were not learned from, are compared as distributions. The perplexity of the
completions under the model of the start tells how far the policy has left its language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from quatrain.alignment.rewards.base import RewardScores
from quatrain.alignment.rollouts import Prompt, Scores, distinct, repetition
from quatrain.generation.engine import Completion, Engine


def outcome(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    rewards: Scores,
    true_rewards: Scores | None = None,
    reference: Engine | None = None,
) -> dict[str, Any]:
    """What completions of held-out prompts score, as JSON.

    `rewards`, `parts` and `true` hold one number per completion, None where it could not be judged; `lengths` are in
    tokens. `perplexity` is that of all tokens under the model of `reference`.
    """
    examples, texts = [prompt.example for prompt in prompts], [completion.text for completion in completions]
    scores = rewards.score(examples, texts)
    true = None if true_rewards is None else true_rewards.score(examples, texts)
    result: dict[str, Any] = {
        "rewards": _rounded(scores.judged(scores.total)),
        "parts": _parts(scores),
        "true": {} if true is None else _parts(true),
        "lengths": [len(completion.ids) for completion in completions],
        "repetition": fmean(repetition(completion.ids) for completion in completions),
        "distinct": distinct([completion.ids for completion in completions]),
        "ended_fraction": fmean(completion.finish_reason == "stop" for completion in completions),
        "texts": texts,
    }
    if reference is not None:
        result["perplexity"] = perplexity(prompts, completions, reference)
    return result


def perplexity(prompts: Sequence[Prompt], completions: Sequence[Completion], reference: Engine) -> float:
    """The perplexity per token of all completions after their prompts, under the reference's model."""
    pairs = [(list(prompt.ids), list(done.ids)) for prompt, done in zip(prompts, completions, strict=True) if done.ids]
    scored = reference.score([prompt for prompt, _ in pairs], [ids for _, ids in pairs])
    tokens = sum(len(ids) for _, ids in pairs)
    return math.exp(-sum(math.fsum(score.logprobs) for score in scored) / tokens) if tokens else math.nan


def comparison(prompts: Sequence[Prompt], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two outcomes on the same prompts, as the report reads them. `controls` is what each prompt asks for, if it does.

    `gain` is the difference of the mean rewards in standard deviations of the rewards before.
    """
    controls = [each.example.get("control") if isinstance(each.example, Mapping) else None for each in prompts]
    return {
        "prompts": [prompt.text for prompt in prompts],
        "controls": controls if all(isinstance(control, str) for control in controls) else [],
        "gain": gain(before["rewards"], after["rewards"]),
        "before": before,
        "after": after,
    }


def gain(before: Sequence[float | None], after: Sequence[float | None]) -> float | None:
    """The difference of two means in standard deviations of the first; None where these are 0. None takes no part."""
    first, last = ([value for value in values if value is not None] for values in (before, after))
    if not first or not last:
        return None
    mean = fmean(first)
    deviation = math.sqrt(fmean((value - mean) ** 2 for value in first))
    return (fmean(last) - mean) / deviation if deviation else None


def _parts(scores: RewardScores) -> dict[str, list[float | None]]:
    return {name: _rounded(scores.judged(values)) for name, values in scores.parts.items()}


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.5g}") for value in values]
