"""The reward stage: a reward model from pairs of answers of which people preferred one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.adapters.settings import AdapterSettings
from quatrain.core.settings import Problem
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, family_conflicts, pooling_conflicts
from quatrain.runs.stage import StageSpec, deferred
from quatrain.training.settings import TrainSettings


class RewardStage(StageSettings):
    """A reward model from the pairs of `data.source` (Bradley and Terry, 1952; Ouyang et al., 2022).

    It starts from the model so far, whose head becomes one score, or from fresh weights. A pair's `margin` says by how
    much its chosen answer is better. `center_rewards_coefficient` holds the scores near 0 (Eisenstein et al., 2023).
    With `reads` = "answer" the model reads the answer without its prompt, which suits small encoders and little data.
    `pooling` = "mean" scores the mean of all states, for ModernBERT, whose files can say so.
    """

    kind: Literal["reward"] = "reward"
    context: int | None = Field(default=None, ge=4, description="longest conversation in tokens")
    center_rewards_coefficient: float = Field(default=0.0, ge=0)
    reads: Literal["conversation", "answer"] = "conversation"
    pooling: Literal["family", "mean"] = "family"
    train: TrainSettings
    adapter: AdapterSettings | None = None
    data: DataSettings | None = None
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        if self.train.packing:
            yield Problem(("train", "packing"), "true; a pair is two rows of their own: leave it out")


def conflicts(settings: RewardStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Families without a head for a score or without a mean, and a database, whose questions have no preferences."""
    yield from family_conflicts(recipe, ("stage", index), "reward")
    yield from pooling_conflicts(settings.pooling, recipe, ("stage", index, "pooling"))
    if recipe.data_of(settings).database is not None:
        text = "reward learns from pairs of answers in data.source; a database has none"
        yield Problem(("stage", index), text, (("data", "database"),))


SPEC = StageSpec(
    RewardStage,
    run=deferred("quatrain.runs.stages._reward:run"),
    needs=lambda settings, recipe: {"data", "tokenizer"},
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._reward:prepare"),
    conflicts=conflicts,
    teaches=lambda settings: "task",
    distributed=True,
    judges=True,
)
