"""Unit tests as a reward: the share of tests that the code in a completion passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings, field_of

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)


class UnitTestsReward(RewardSettings):
    """The share of an example's tests that the code in a completion passes; with `all_or_nothing` 1 only for all.

    The code is what stands in a completion's fences (```python), or without fences the whole completion. The tests are
    the example's `field`: a list of statements such as `assert add(1, 2) == 3`, or one text, which is one test.
    It runs in `quatrain.agents.sandbox`, whose page says against what this does and does not protect.
    """

    kind: Literal["unit_tests"] = "unit_tests"
    field: str = Field(default="tests", min_length=1, description="the field of an example with its tests")
    seconds: float = Field(default=5.0, gt=0, le=3600, description="wall time of one completion")
    memory_mb: int = Field(default=512, ge=64, le=1_000_000)
    workers: int = Field(default=4, ge=1, le=1024, description="processes at a time")
    all_or_nothing: bool = False

    def build(self, context: RewardContext) -> Reward:
        from quatrain.agents.sandbox import Limits, run_all

        limits = Limits(self.seconds, self.memory_mb * 2**20)

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            jobs = [(code_of(text), self._tests(each)) for each, text in zip(examples, completions, strict=True)]
            shares = [result.share for result in run_all(jobs, limits, self.workers)]
            return [float(share == 1) for share in shares] if self.all_or_nothing else shares

        return reward

    def _tests(self, example: Any) -> list[str]:
        tests = field_of(example, self.field)
        return [tests] if isinstance(tests, str) else list(tests)


def code_of(completion: str) -> str:
    """The code in a completion's fences, joined; the whole completion where it has none."""
    blocks = FENCE.findall(completion)
    return "\n".join(blocks) if blocks else completion


SETTINGS = UnitTestsReward
