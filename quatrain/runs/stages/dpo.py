"""The dpo stage: direct preference optimization (Rafailov et al., 2023) on sampled or given pairs of answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.adapters.settings import AdapterSettings
from quatrain.core.settings import Problem
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, family_conflicts
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings


class DPOStage(StageSettings):
    """Direct preference optimization (Rafailov et al., 2023).

    With a database, the model answers `prompts` questions `samples` times at `temperature`, and execution judges the
    answers; otherwise the pairs come from `data.preferences`. `sft_weight` weighs an added loss on the chosen answers.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    prompts: int = Field(default=2000, ge=1, le=10_000_000)
    samples: int = Field(default=4, ge=2, le=10_000)
    temperature: float = Field(default=1.0, gt=0, le=10)
    sft_weight: float = Field(default=0.0, ge=0)
    context: int | None = Field(default=None, ge=2)
    train: TrainSettings
    adapter: AdapterSettings | None = None
    data: DataSettings | None = None
    evaluate: bool = True


def needs(settings: DPOStage, recipe: RecipeSettings) -> set[Need]:
    """A model, and data unless a file of preferences is given."""
    return {"model"} if recipe.data_of(settings).preferences is not None else {"model", "data"}


def conflicts(settings: DPOStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Data that give neither a judge nor pairs, and families that are no decoders."""
    data = recipe.data_of(settings)
    if data.source and not data.database and not data.preferences:
        yield Problem(
            ("stage", index),
            "dpo needs data.database, whose answers are judged by execution, or data.preferences, a file of "
            f"pairs; data.source = {format_value(data.source)} has neither",
            (("data", "source"), ("data", "database"), ("data", "preferences")),
        )
    yield from family_conflicts(recipe, ("stage", index), "dpo")


SPEC = StageSpec(
    DPOStage,
    run=deferred("quatrain.runs.stages._dpo:run"),
    needs=needs,
    produces=("model",),
    prepare=lambda settings, context: "Skipped: this stage generates its training data during the run.",
    conflicts=conflicts,
    teaches=lambda settings: "chat",
)
