"""The kinds of rewards that a recipe names: one module each, found by its place in this package.

    rewards = [
      { kind = "task" },
      { kind = "length", target = 40, weight = 0.1 },
    ]

A module holds one class of settings with a `kind` of its own (`base.RewardSettings`) as `SETTINGS`. It imports no torch
when it is imported, so that recipes are checked quickly.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from quatrain.alignment.rewards.base import RewardContext, RewardSettings, TaskReward, WeightedRewards
from quatrain.core.errors import InputError
from quatrain.core.settings import Problem
from quatrain.core.wording import format_value

COMMON = ("base",)
"""Modules of this package that are not a reward."""


@cache
def kinds() -> dict[str, type[RewardSettings]]:
    """The settings of every kind of reward, by the name of the kind."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in COMMON)
    classes: list[type[RewardSettings]] = [import_module(f"{__name__}.{name}").SETTINGS for name in names]
    return {settings.model_fields["kind"].default: settings for settings in classes}


if TYPE_CHECKING:
    AnyReward = RewardSettings
else:
    AnyReward = Annotated[Union[tuple(kinds().values())], Field(discriminator="kind")]  # noqa: UP007


def name_problems(rewards: Sequence[RewardSettings], key: str = "rewards") -> Iterator[Problem]:
    """Rewards of a stage that have one name, for its `conflicts`."""
    counts = Counter(reward.part for reward in rewards)
    for index, reward in enumerate(rewards):
        if counts[reward.part] > 1:
            yield Problem((key, index, "name"), f"{format_value(reward.part)} more than once; give each its own name")


def build(
    rewards: Sequence[RewardSettings], context: RewardContext, *, timeout: float | None = 600.0
) -> WeightedRewards:
    """The rewards of a recipe; without any, the score of the task. Raises InputError if there is no task either."""
    if not rewards:
        if context.task is None:
            raise InputError(
                f"rewards: none, and there is no task; name one, a table with a kind of {', '.join(kinds())}."
            )
        return WeightedRewards({"task": (TaskReward(context.task), 1.0)}, timeout=timeout)
    parts = {reward.part: (reward.build(context), reward.weight) for reward in rewards}
    return WeightedRewards(parts, timeout=timeout)
