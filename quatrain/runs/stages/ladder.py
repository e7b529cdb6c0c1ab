"""The ladder stage: one text under ever stronger models, from a uniform guess to a GPT, all measured alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem, Settings
from quatrain.data.settings import DataSettings
from quatrain.models.transformer.settings import ModelSettings, families_with_head
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings


class Rung(Settings):
    """One model of the ladder.

    `kind`: all tokens alike (`uniform`), their frequencies (`unigram`), counted n-grams of up to `order` tokens with
    modified Kneser-Ney smoothing (`ngram`), or a network of the shape `model`, trained by `train`. `rows` as for the
    pretrain stage.
    """

    name: str = Field(min_length=1, max_length=60)
    kind: Literal["uniform", "unigram", "ngram", "network"] = "network"
    order: int = Field(default=5, ge=1, le=20)
    model: ModelSettings = ModelSettings()
    rows: Literal["windows", "carried"] = "windows"
    train: TrainSettings | None = None

    def conflicts(self) -> Iterator[Problem]:
        if (self.kind == "network") != (self.train is not None):
            text = "missing; a network has to be trained" if self.train is None else "only a network is trained"
            yield Problem(("train",), text, (("kind",),))
        if self.kind != "network":
            return
        if self.model.folder is not None or self.model.family not in families_with_head("causal"):
            known = ", ".join(families_with_head("causal"))
            yield Problem(("model", "family"), f"{self.model.family}; must be a new model of {known}")
        if self.rows == "carried" and self.model.family != "recurrent":
            yield Problem(("rows",), f'"carried"; a {self.model.family} model has no state to carry on')
        if self.train is not None and self.train.batch_tokens < self.model.max_position_embeddings:
            least = self.model.max_position_embeddings
            yield Problem(("train", "batch_tokens"), f"{self.train.batch_tokens}; must be at least one row of {least}")


class LadderStage(StageSettings):
    """Measures each rung on the text held out: bits per byte beside seconds of training and parameters.

    The best model becomes the run's.
    """

    kind: Literal["ladder"] = "ladder"
    rungs: Listing[Rung] = Field(min_length=1)
    data: DataSettings | None = None

    def conflicts(self) -> Iterator[Problem]:
        names = [rung.name for rung in self.rungs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield Problem(("rungs",), f"{', '.join(twice)} more than once; each rung needs a name of its own")

    def streaming_problems(self) -> Iterator[str]:
        yield "streaming: true; every rung reads the whole text: leave it out"


def needs(settings: LadderStage, recipe: RecipeSettings) -> set[Need]:
    """A text and a tokenizer."""
    return {"data", "tokenizer"}


SPEC = StageSpec(
    LadderStage,
    run=deferred("quatrain.runs.stages._ladder:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._ladder:prepare"),
    teaches=lambda settings: "text",
)
