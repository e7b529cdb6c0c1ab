"""The length of a completion as a reward: near a target, or a soft punishment of overlong ones.

The soft punishment is that of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings
from quatrain.core.settings import Problem


class LengthReward(RewardSettings):
    """0 for a completion of the right length, down to -1 for others.

    With `target` lengths the score falls with the distance, to -1 at distance `target`. With `longest` it is 0 up to
    `longest - buffer`, falls evenly to -1 at `longest`, and stays there.
    """

    kind: Literal["length"] = "length"
    target: int | None = Field(default=None, ge=1)
    longest: int | None = Field(default=None, ge=1)
    buffer: int = Field(default=0, ge=0, description="lengths before `longest` that are punished in part")
    unit: Literal["characters", "words"] = "words"

    def conflicts(self) -> Iterator[Problem]:
        both = (("target",), ("longest",))
        if (self.target is None) == (self.longest is None):
            have = "has neither target nor longest" if self.target is None else "has both target and longest"
            yield Problem((), f"{have}; must have exactly one, such as target = 40", both)
        if self.longest is not None and self.buffer > self.longest:
            yield Problem(("buffer",), f"{self.buffer}; must be at most longest = {self.longest}", (("longest",),))
        if self.buffer and self.target is not None:
            yield Problem(("buffer",), f"{self.buffer}; only longest reads it: leave it out", (("target",),))

    def build(self, context: RewardContext) -> Reward:
        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            return [self.score(len(text) if self.unit == "characters" else len(text.split())) for text in completions]

        return reward

    def score(self, length: int) -> float:
        """The score of a completion of this length."""
        if self.target is not None:
            return -min(1.0, abs(length - self.target) / self.target)
        longest = self.longest or 0
        if length <= longest - self.buffer:
            return 0.0
        return -1.0 if length > longest or not self.buffer else -(length - longest + self.buffer) / self.buffer


SETTINGS = LengthReward
