"""The vision-language stage: a decoder learns to answer questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Lesson, StageSpec, deferred
from quatrain.runs.stages.vision import missing_pictures, picture_problems
from quatrain.training.settings import TrainSettings


class VisionLanguageStage(StageSettings):
    """Joins a vision tower and a decoder with a projector, as LLaVA does, and trains what `learns` names.

    `text`: the decoder learns the questions and answers without pictures; `projector`: the projector alone, while tower
    and decoder are frozen; `all`: everything. The tower is that of the model so far (a CLIP, a ViT), the decoder a new
    Llama of the recipe's sizes, or that of the folder `decoder` with its tokenizer; a model that is joined already
    stays as it is. Without a model so far the tower is new too. `images` is a set of the package with questions
    (`scenes`, `shapes`), or a file of rows with image, question and answer, or with LLaVA's conversations.
    `train.batch_tokens` counts pictures.
    """

    kind: Literal["vision-language"] = "vision-language"
    batches_of_tokens: ClassVar[bool] = False
    images: str = Field(default="scenes", min_length=1)
    learns: Literal["text", "projector", "all"] = "all"
    decoder: str | None = Field(default=None, min_length=1)
    vocab_size: int = Field(default=512, ge=260, le=1_000_000, description="of a new decoder's byte-level tokenizer")
    projector: Literal["mlp", "linear"] = "mlp"
    layer: int = Field(default=-2, ge=-1_000, le=1_000, description="whose states of the tower are read")
    selection: Literal["default", "full"] = Field(default="default", description='"full" keeps the class token')
    image_size: int = Field(default=32, ge=1, le=4096, description="of a new tower")
    patch_size: int = Field(default=8, ge=1, le=1024, description="of a new tower")
    augment: Listing[Literal["shift", "brightness", "erase"]] = ()
    validation: float = Field(default=0.05, ge=0, lt=1)
    train: TrainSettings

    def conflicts(self) -> Iterator[Problem]:
        yield from picture_problems(self.image_size, self.patch_size, self.train)

    def model_folders(self) -> dict[str, str]:
        return {} if self.decoder is None else {"decoder": self.decoder}


def file_problems(settings: VisionLanguageStage, recipe: RecipeSettings) -> Iterator[str]:
    """Pictures that are not there."""
    yield from missing_pictures(settings.images, "a file of questions", Path.exists)


def teaches(settings: VisionLanguageStage) -> Lesson:
    """Chats."""
    return "chat"


SPEC = StageSpec(
    VisionLanguageStage,
    run=deferred("quatrain.runs.stages._vision_language:run"),
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._vision_language:prepare"),
    file_problems=file_problems,
    teaches=teaches,
    tables=("model",),
)
