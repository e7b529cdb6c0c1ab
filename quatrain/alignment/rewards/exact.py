"""Exact match as a reward: 1 where the completion is the reference, 0 elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings, compiled, pattern_problems
from quatrain.core.settings import Problem


class ExactReward(RewardSettings):
    """1 for a completion that equals the reference, 0 for others; white space around both does not count.

    The reference is the task's, or the `field` of the example. With `extract`, a regular expression, its first group
    (or its whole last match) is compared instead of the whole completion: `"#### (.*)"`.
    """

    kind: Literal["exact"] = "exact"
    field: str | None = Field(default=None, description="the field of an example with its reference")
    extract: str | None = Field(default=None, min_length=1, description="a regular expression that finds the answer")
    ignore_case: bool = False

    def conflicts(self) -> Iterator[Problem]:
        yield from pattern_problems("extract", self.extract)

    def build(self, context: RewardContext) -> Reward:
        pattern = None if self.extract is None else compiled(self.extract)

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            pairs = zip(examples, completions, strict=True)
            references = [(str(context.reference(example, self.field)), completion) for example, completion in pairs]
            return [float(self._same(reference, completion, pattern)) for reference, completion in references]

        return reward

    def _same(self, reference: str, completion: str, pattern: re.Pattern[str] | None) -> bool:
        if pattern is not None:
            matches = list(pattern.finditer(completion))
            if not matches:
                return False
            completion = matches[-1].group(1 if pattern.groups else 0) or ""
        sides = [side.strip() for side in (reference, completion)]
        if self.ignore_case:
            sides = [side.casefold() for side in sides]
        return sides[0] == sides[1]


SETTINGS = ExactReward
