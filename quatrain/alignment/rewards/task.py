"""The score of the stage's own task as a reward."""

from __future__ import annotations

from typing import ClassVar, Literal

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings, TaskReward
from quatrain.core.errors import InputError


class TaskRewardSettings(RewardSettings):
    """The main metric of the stage's task, such as the accuracy of executed SQL."""

    needs_task: ClassVar[bool] = True

    kind: Literal["task"] = "task"

    def build(self, context: RewardContext) -> Reward:
        if context.task is None:
            raise InputError('rewards: kind = "task" needs a task, which this stage does not have.')
        return TaskReward(context.task)


SETTINGS = TaskRewardSettings
