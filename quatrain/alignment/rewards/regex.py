"""A regular expression as a reward: 1 where it matches, 0 elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings
from quatrain.core.settings import Problem
from quatrain.core.wording import format_value


class RegexReward(RewardSettings):
    """1 for a completion that the pattern matches, 0 for others; with `count` the number of matches, at most `most`.

    `where` is "anywhere" or "whole" (the completion without the white space around it). The dot matches line breaks.
    """

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, description="a regular expression of Python")
    where: Literal["anywhere", "whole"] = "anywhere"
    ignore_case: bool = False
    count: bool = Field(default=False, description="the number of matches")
    most: int = Field(default=1, ge=1, description="matches that count")

    def conflicts(self) -> Iterator[Problem]:
        try:
            re.compile(self.pattern)
        except re.error as error:
            yield Problem(("pattern",), f"{format_value(self.pattern)}; no valid regular expression: {error}")
        if self.count and self.where == "whole":
            yield Problem(("count",), "true; a whole completion matches once: leave it out", (("where",),))

    def build(self, context: RewardContext) -> Reward:
        pattern = re.compile(self.pattern, re.DOTALL | (re.IGNORECASE if self.ignore_case else 0))

        def score(completion: str) -> float:
            if self.where == "whole":
                return float(pattern.fullmatch(completion.strip()) is not None)
            if not self.count:
                return float(pattern.search(completion) is not None)
            return float(min(self.most, sum(1 for _ in pattern.finditer(completion))))

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            return [score(completion) for completion in completions]

        return reward


SETTINGS = RegexReward
