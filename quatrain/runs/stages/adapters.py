"""The adapters stage: trains several adapters over one model, one after the other, and scores each on the same set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.adapters.settings import PROMPT_METHODS, AdapterSettings
from quatrain.core.settings import Problem, Settings
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings
from quatrain.generation.decoding import Decoding
from quatrain.runs.settings import RecipeSettings, StageSettings, family_conflicts
from quatrain.runs.stage import StageContext, StageSpec, deferred
from quatrain.training.settings import TrainSettings


class MethodSettings(Settings):
    """One adapter of the comparison, and how it is trained."""

    adapter: AdapterSettings
    train: TrainSettings


class AdaptersStage(StageSettings):
    """Trains each of `methods` over the frozen model so far and scores it; the model itself stays as it was.

    The data are texts with answers, asked as a chat of one turn. The table has the best prompt of an earlier prompting
    stage on the same set beside the adapters.
    """

    kind: Literal["adapters"] = "adapters"
    context: int | None = Field(default=None, ge=2)
    data: DataSettings | None = None
    methods: dict[str, MethodSettings] = Field(description="adapters by name, each with how it is trained")
    decoding: Decoding = Decoding(max_new_tokens=8)

    def conflicts(self) -> Iterator[Problem]:
        if not self.methods:
            yield Problem(("methods",), "names none; must have at least one adapter, each with adapter and train")
        for name, method in self.methods.items():
            place = ("methods", name)
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                text = f"{format_value(name)}; must be letters, digits, - and _, for a folder will bear the name"
                yield Problem(place, text)
            if method.train.packing and method.adapter.method in PROMPT_METHODS:
                yield Problem(
                    (*place, "train", "packing"), "true; a soft prompt precedes one text per row: leave it out"
                )


def conflicts(settings: AdaptersStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Families that do not chat, and data without answers of their own."""
    yield from family_conflicts(recipe, ("stage", index), "chat")
    if recipe.data_of(settings).generates:
        text = "adapters learns from data.source; a database or a task generates its own examples"
        yield Problem(("stage", index), text, (("data", "database"), ("data", "task")))


def skipped(settings: AdaptersStage, context: StageContext) -> str:
    """Why the preflight does not prepare the stage."""
    return "Skipped: each adapter of this stage is checked before it is trained."


SPEC = StageSpec(
    AdaptersStage,
    run=deferred("quatrain.runs.stages._adapters:run"),
    needs=lambda settings, recipe: {"data", "model"},
    prepare=skipped,
    conflicts=conflicts,
)
