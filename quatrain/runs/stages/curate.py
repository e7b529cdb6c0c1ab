"""The curate stage: the same small model on raw, on filtered and on deduplicated text, at equal tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.data.settings import DataSettings
from quatrain.models.transformer.settings import ModelSettings, families_with_head
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings


class CurateStage(StageSettings):
    """Makes a crawl of `documents` pages out of passages of the data's source, curates it three ways, and trains.

    The text is left raw, filtered (all steps that judge one document), or filtered and deduplicated. A model of the
    shape `model` learns from each for `train.steps` steps, with `seeds` seeds. All are measured on `held_out` passages
    that no page shows. The best model becomes the run's.
    """

    kind: Literal["curate"] = "curate"
    documents: int = Field(default=6000, ge=50, le=1_000_000, description="pages of the crawl")
    words: int = Field(default=250, ge=60, le=10_000, description="words of a passage")
    held_out: int = Field(default=200, ge=5, le=100_000, description="passages")
    seeds: int = Field(default=3, ge=2, le=100)
    model: ModelSettings = ModelSettings()
    train: TrainSettings
    data: DataSettings | None = None

    def conflicts(self) -> Iterator[Problem]:
        if self.model.folder is not None or self.model.family not in families_with_head("causal"):
            known = ", ".join(families_with_head("causal"))
            yield Problem(("model", "family"), f"{self.model.family}; must be a new model of {known}")
        if self.train.steps is None:
            yield Problem(("train", "steps"), "missing; equal tokens are equal steps: must be a number of steps")
        if self.train.batch_tokens < self.model.max_position_embeddings:
            least = self.model.max_position_embeddings
            yield Problem(("train", "batch_tokens"), f"{self.train.batch_tokens}; must be at least one row of {least}")


def needs(settings: CurateStage, recipe: RecipeSettings) -> set[Need]:
    """A text and a tokenizer."""
    return {"data", "tokenizer"}


def conflicts(settings: CurateStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Passages come from a text."""
    if recipe.data_of(settings).source is None:
        yield Problem(("data", "source"), "missing; passages of the crawl come from a text, such as british-novels")


SPEC = StageSpec(
    CurateStage,
    run=deferred("quatrain.runs.stages._curate:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._curate:prepare"),
    conflicts=conflicts,
    teaches=lambda settings: "text",
)
