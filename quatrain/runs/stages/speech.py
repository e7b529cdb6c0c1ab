"""The speech stage: a small Whisper learns from recordings to write what is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings


class SpeechStage(StageSettings):
    """Trains on the recordings of `data.source`, a ZIP file or folder of sounds (`quatrain.data.recordings`).

    Recordings whose take is in `held_out_takes` are held out; without takes the share `data.validation`. Sounds are cut
    or padded to `seconds`. `train.batch_tokens` counts frames of 10 ms.
    """

    batches_of_tokens: ClassVar[bool] = False

    kind: Literal["speech"] = "speech"
    seconds: int = Field(default=1, ge=1, le=30, description="length of a recording; longer ones are cut")
    num_mel_bins: int = Field(default=80, ge=4, le=512)
    held_out_takes: Listing[int] = ()
    masked_bands: int = Field(default=12, ge=0, le=512, description="SpecAugment: the widest blanked band")
    masked_frames: int = Field(default=20, ge=0, le=3_000, description="SpecAugment: the longest blanked time")
    shift: int = Field(default=15, ge=0, le=3_000, description="frames by which a recording is moved")
    pitch: int = Field(default=3, ge=0, le=512, description="bands by which a recording is moved")
    tempo: float = Field(default=0.15, ge=0, lt=1, description="share by which a recording is stretched or shortened")
    train: TrainSettings
    data: DataSettings | None = None


def needs(settings: SpeechStage, recipe: RecipeSettings) -> set[Need]:
    """Recordings."""
    return {"data"}


def conflicts(settings: SpeechStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Another family than Whisper, and data that are no recordings."""
    data = recipe.data_of(settings)
    if data.generates or data.streaming:
        yield Problem(("data",), "a task, a database or a stream; recordings come from a ZIP file or a folder")
    if recipe.model.family != "whisper":
        yield Problem(("model", "family"), f'"{recipe.model.family}"; a speech stage trains family = "whisper"')
    if not settings.held_out_takes and not data.validation:
        yield Problem(("data", "validation"), "0; some recordings must be held out, such as 0.1, or held_out_takes")


SPEC = StageSpec(
    SpeechStage,
    run=deferred("quatrain.runs.stages._speech:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._speech:prepare"),
    conflicts=conflicts,
)
