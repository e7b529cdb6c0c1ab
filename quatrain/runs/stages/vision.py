"""The vision stage: a transformer that reads pictures learns their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict

from quatrain.core.settings import Listing, Problem
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Lesson, StageSpec, deferred
from quatrain.training.settings import TrainSettings

CLASSIFIERS = ("vit", "deit", "ijepa")
"""The families that learn the classes of pictures."""


Side = Annotated[int, Field(ge=1, le=1024)]


def picture_problems(image_size: int, patch_size: int | tuple[int, int], train: TrainSettings) -> Iterator[Problem]:
    """What is wrong with the sizes and the training of a stage that reads pictures."""
    sides = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if any(image_size % side for side in sides):
        shown = " x ".join(map(str, dict.fromkeys(sides)))
        text = f"{image_size}; must be a multiple of patch_size ({shown}), or pixels are not seen"
        yield Problem(("image_size",), text, (("patch_size",),))
    if train.packing:
        yield Problem(("train", "packing"), "true; pictures are not packed: leave it out")


def missing_pictures(images: str, kind: str, is_there: Callable[[Path], bool]) -> Iterator[str]:
    """The parts of `images` that are no set of the package and not there as `kind`, such as "a folder"."""
    from quatrain.core.reading import user_path
    from quatrain.data.pictures import JOINED, names

    for name in (part.strip() for part in images.split(JOINED)):
        if name not in names() and not is_there(user_path(name, "images")):
            yield f"images: {name} is neither {kind} nor one of {', '.join(names())}"


class VisionStage(StageSettings):
    """Trains a vision model from scratch or from the model so far; `train.batch_tokens` counts pictures.

    `images` is a set of the package (`digits`, `spoken-digits`), a folder with a subfolder of pictures for each class,
    or several joined by " + ". `image_size` is the side of a prepared picture; a model that was made for another one
    gets interpolated positions. `patch_size` is the side of a patch, or its height and width: a column of a spectrogram
    is a moment. `teacher` is a model folder whose classes a model with a distillation token (family =
    "deit") learns beside the labels. `validation` is the share of the training pictures that validations measure.
    """

    kind: Literal["vision"] = "vision"
    batches_of_tokens: ClassVar[bool] = False
    images: str = Field(min_length=1)
    image_size: int = Field(default=32, ge=1, le=4096)
    patch_size: Side | Annotated[tuple[Side, Side], Strict(False)] = 4
    augment: Listing[Literal["flip", "shift", "brightness", "erase"]] = ()
    teacher: str | None = Field(default=None, min_length=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    train: TrainSettings

    def conflicts(self) -> Iterator[Problem]:
        yield from picture_problems(self.image_size, self.patch_size, self.train)


def conflicts(settings: VisionStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """A family that reads no pictures, and a teacher for one without a distillation token."""
    if recipe.model.folder is not None:
        return
    if recipe.model.family not in CLASSIFIERS:
        known = ", ".join(CLASSIFIERS)
        yield Problem(("model", "family"), f'"{recipe.model.family}"; a vision stage needs one of {known}')
    elif settings.teacher is not None and recipe.model.family != "deit":
        text = f'"{settings.teacher}"; only family = "deit" has a distillation token'
        yield Problem(("stage", index, "teacher"), text, (("model", "family"),))


def file_problems(settings: VisionStage, recipe: RecipeSettings) -> Iterator[str]:
    """Pictures that are not there."""
    yield from missing_pictures(settings.images, "a folder", Path.is_dir)


def teaches(settings: VisionStage) -> Lesson:
    """The task of its head."""
    return "task"


SPEC = StageSpec(
    VisionStage,
    run=deferred("quatrain.runs.stages._vision:run"),
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._vision:prepare"),
    conflicts=conflicts,
    file_problems=file_problems,
    teaches=teaches,
    tables=("model",),
)
