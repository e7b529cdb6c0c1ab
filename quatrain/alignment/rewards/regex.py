"""A regular expression as a reward: 1 where it matches, 0 elsewhere, or the number of its matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings, compiled, pattern_problems
from quatrain.core.settings import Problem


class RegexReward(RewardSettings):
    """1 for a completion in which the pattern matches, 0 for others; with `most`, the number of matches up to that.

    `where` is "anywhere" or "whole" (the completion without the white space around it). The dot matches line breaks.
    """

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, description="a regular expression of Python")
    where: Literal["anywhere", "whole"] = "anywhere"
    ignore_case: bool = False
    most: int = Field(default=1, ge=1, description="matches that count")

    def conflicts(self) -> Iterator[Problem]:
        yield from pattern_problems("pattern", self.pattern)
        if self.most > 1 and self.where == "whole":
            yield Problem(("most",), f"{self.most}; the whole completion matches once: leave it out", (("where",),))

    def build(self, context: RewardContext) -> Reward:
        pattern = compiled(self.pattern, ignore_case=self.ignore_case)

        def score(completion: str) -> float:
            if self.where == "whole":
                return float(pattern.fullmatch(completion.strip()) is not None)
            matches = zip(range(self.most), pattern.finditer(completion), strict=False)
            return float(sum(1 for _ in matches))

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            return [score(completion) for completion in completions]

        return reward


SETTINGS = RegexReward
