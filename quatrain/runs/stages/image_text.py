"""The image-text stage: a text tower and an image tower learn which captions and pictures belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Lesson, StageSpec, deferred
from quatrain.runs.stages.vision import picture_problems
from quatrain.training.settings import TrainSettings


class ImageTextStage(StageSettings):
    """Trains CLIP on captioned pictures; both towers have the sizes of the recipe's model.

    `images` is a set of the package with captions (`shapes`). `train.batch_tokens` counts pictures: the more, the more
    wrong captions each has to tell apart. Words are the tokens; the tokenizer is learned from the captions.
    """

    kind: Literal["image-text"] = "image-text"
    batches_of_tokens: ClassVar[bool] = False
    images: str = Field(default="shapes", min_length=1)
    image_size: int = Field(default=32, ge=1, le=4096)
    patch_size: int = Field(default=4, ge=1, le=1024)
    text_layers: int = Field(default=2, ge=1, le=200)
    projection: int = Field(default=64, ge=1, le=100_000, description="width of the vectors that are compared")
    short_captions: float = Field(
        default=0.0, ge=0, le=1, description="share of pictures with a caption that says less"
    )
    largest_scale: float = Field(default=100, ge=1, le=100, description="limit of the learned factor of similarities")
    augment: Listing[Literal["flip", "shift", "brightness", "erase"]] = ()
    validation: float = Field(default=0.05, ge=0, lt=1)
    train: TrainSettings

    def conflicts(self) -> Iterator[Problem]:
        yield from picture_problems(self.image_size, self.patch_size, self.train)


def conflicts(settings: ImageTextStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """A family without two towers."""
    if recipe.model.folder is None and recipe.model.family != "clip":
        yield Problem(("model", "family"), f'"{recipe.model.family}"; an image-text stage needs family = "clip"')


def teaches(settings: ImageTextStage) -> Lesson:
    """The task of its head."""
    return "task"


SPEC = StageSpec(
    ImageTextStage,
    run=deferred("quatrain.runs.stages._image_text:run"),
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._image_text:prepare"),
    conflicts=conflicts,
    teaches=teaches,
    tables=("model",),
)
