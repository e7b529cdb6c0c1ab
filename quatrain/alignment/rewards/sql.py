"""Executed SQL as a reward: 1 where a completion's statement gives the same answer as the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings
from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.wording import format_value


class SQLReward(RewardSettings):
    """1 where the SQL of a completion and the reference give the same answer on `database`, 0 elsewhere.

    Statements run read-only, in the sandbox and by the rules of the text-to-SQL task, whose own examples need no more
    than `kind = "task"`. A completion cannot be judged where the reference itself fails.
    """

    kind: Literal["sql"] = "sql"
    database: str = Field(min_length=1, description="a SQLite file")
    field: str | None = Field(default=None, description="the field of an example with its right SQL")

    def build(self, context: RewardContext) -> Reward:
        from quatrain.tasks.task import ANSWER_BYTES, spec_of_database

        path, spec = user_path(self.database, "rewards: database"), spec_of_database()
        if not path.is_file():
            raise InputError(f"rewards: database: {format_value(self.database)} is not a file.")

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
            pairs = zip(examples, completions, strict=True)
            with spec.database(path, rows=1, size=ANSWER_BYTES, show_schema=False) as database:
                scores = [database.score(str(context.reference(each, self.field)), text) for each, text in pairs]
            return [score.main if score.valid else None for score in scores]

        return reward


SETTINGS = SQLReward
