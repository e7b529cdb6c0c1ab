"""Repetition as a punishment: the share of n-grams of words that a completion has said before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings


class RepetitionReward(RewardSettings):
    """0 for a completion without a repeated n-gram of words, towards -1 for one that repeats itself over and over."""

    kind: Literal["repetition"] = "repetition"
    n: int = Field(default=3, ge=1, le=1000, description="words of an n-gram")

    def build(self, context: RewardContext) -> Reward:
        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            return [-repeated_share(completion, self.n) for completion in completions]

        return reward


def repeated_share(text: str, n: int = 3) -> float:
    """The share of a text's n-grams of words that also occur earlier in it; 0 for a text of fewer than n words."""
    words = text.lower().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


SETTINGS = RepetitionReward
