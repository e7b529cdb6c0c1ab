"""The series stage: classifies windows of sensor readings, of a CSV file or generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Problem
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import StageSpec, deferred
from quatrain.training.settings import TrainSettings


class SeriesStage(StageSettings):
    """A 1-D CNN or an LSTM on windows of `window` readings.

    `data.source` is a CSV file with a column `label` and columns of numbers; without it `examples` windows of
    accelerometer traces are generated. A share `data.validation` of the windows, the last ones of each label, is held
    out. `kernel_size` is that of the CNN. `train.batch_tokens` counts readings.
    """

    batches_of_tokens: ClassVar[bool] = False

    kind: Literal["series"] = "series"
    network: Literal["cnn", "lstm"] = "cnn"
    window: int = Field(default=128, ge=2, le=1_000_000)
    stride: int | None = Field(default=None, ge=1, description="readings between two windows; half a window")
    examples: int = Field(default=1200, ge=12, le=1_000_000, description="generated windows")
    hidden_size: int = Field(default=64, ge=1, le=100_000)
    num_hidden_layers: int = Field(default=1, ge=1, le=100)
    kernel_size: int = Field(default=9, ge=1, le=10_000)
    train: TrainSettings
    data: DataSettings | None = None


def conflicts(settings: SeriesStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Data that are not readings, and none held out."""
    data = recipe.data_of(settings)
    if data.generates or data.streaming:
        yield Problem(("data",), "a task, a database or a stream; readings come from a CSV file, or are generated")
    if not data.validation:
        yield Problem(("data", "validation"), "0; some windows must be held out to measure the accuracy, such as 0.25")


SPEC = StageSpec(
    SeriesStage,
    run=deferred("quatrain.runs.stages._series:run"),
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._series:prepare"),
    conflicts=conflicts,
)
