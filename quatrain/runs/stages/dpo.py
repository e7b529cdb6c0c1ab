"""The dpo stage: direct preference optimization and its relatives, on given or sampled preferences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.adapters.settings import AdapterSettings
from quatrain.alignment.rewards import AnyReward, name_problems
from quatrain.core.settings import Listing, Problem
from quatrain.core.wording import format_value
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, family_conflicts
from quatrain.runs.stage import Need, StageSpec, deferred
from quatrain.training.settings import TrainSettings

SMOOTHED = ("cdpo", "robust")
UNREFERENCED = ("orpo", "simpo")


class DPOStage(StageSettings):
    """Direct preference optimization (Rafailov et al., 2023) and its relatives: `loss` chooses one.

    The preferences are those of `data.preferences` or `data.source`: pairs, rankings or scores, and for `loss` = "kto"
    answers rated good or bad. Otherwise the model answers `prompts` questions `samples` times at `temperature`: the
    task that the data generate judges the answers, or `rewards` rank them.

    `beta` defaults to the usual value of the loss. `sft_weight` weighs an added loss on the chosen answers.
    `reference` = "base" takes the reference's log-probabilities from the model without its adapter at each step.
    """

    kind: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "cdpo", "robust", "ipo", "hinge", "orpo", "simpo", "kto"] = "sigmoid"
    beta: float | None = Field(default=None, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="assumed share of swapped pairs")
    simpo_gamma: float | None = Field(default=None, ge=0, description="the target margin of simpo")
    desirable_weight: float = Field(default=1.0, ge=0, description="the weight of good answers, for kto")
    undesirable_weight: float = Field(default=1.0, ge=0, description="the weight of bad answers, for kto")
    sft_weight: float = Field(default=0.0, ge=0)
    reference: Literal["precomputed", "base"] = "precomputed"
    rewards: Listing[AnyReward] = ()
    prompts: int = Field(default=2000, ge=1, le=10_000_000)
    samples: int = Field(default=4, ge=2, le=10_000)
    temperature: float = Field(default=1.0, gt=0, le=10)
    pairs_per_prompt: int = Field(default=1, ge=1, le=10_000)
    context: int | None = Field(default=None, ge=2)
    train: TrainSettings
    adapter: AdapterSettings | None = None
    data: DataSettings | None = None
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        yield from name_problems(self.rewards)
        readers = {
            "label_smoothing": SMOOTHED,
            "simpo_gamma": ("simpo",),
            "desirable_weight": ("kto",),
            "undesirable_weight": ("kto",),
        }
        for name, losses in readers.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.loss not in losses:
                text = f"{value}; only loss = {' or '.join(map(format_value, losses))} reads it: leave it out"
                yield Problem((name,), text, (("loss",),))
        if self.loss in SMOOTHED and not self.label_smoothing:
            text = f"0; loss = {format_value(self.loss)} needs the assumed share of swapped pairs, such as 0.1"
            yield Problem(("label_smoothing",), text, (("loss",),))
        if self.sft_weight and self.loss in ("orpo", "kto"):
            why = "has this loss already" if self.loss == "orpo" else "has no chosen answers"
            yield Problem(("sft_weight",), f"{self.sft_weight}; {why}: leave it out", (("loss",),))
        if self.reference == "base" and (self.adapter is None or self.loss in UNREFERENCED):
            why = (
                "there is no adapter" if self.adapter is None else f"loss = {format_value(self.loss)} has no reference"
            )
            yield Problem(("reference",), f'"base"; {why}: leave it out', (("adapter",), ("loss",)))
        if self.train.packing:
            yield Problem(("train", "packing"), "true; a pair is two rows of their own: leave it out")


def needs(settings: DPOStage, recipe: RecipeSettings) -> set[Need]:
    """A model, and data unless a file of preferences is given."""
    return {"model"} if recipe.data_of(settings).preferences is not None else {"model", "data"}


def conflicts(settings: DPOStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Rewards beside given preferences, streams, and families that are no decoders."""
    data = recipe.data_of(settings)
    if settings.rewards and data.preferences is not None:
        text = "given beside data.preferences; the stage learns from these pairs and samples nothing: remove one"
        yield Problem(("stage", index, "rewards"), text, (("data", "preferences"),))
    if data.streaming:
        yield Problem(("stage", index), "dpo reads its preferences whole: leave data.streaming out",
                      (("data", "streaming"),))  # fmt: skip
    yield from family_conflicts(recipe, ("stage", index), "dpo")


SPEC = StageSpec(
    DPOStage,
    run=deferred("quatrain.runs.stages._dpo:run"),
    needs=needs,
    produces=("model",),
    prepare=lambda settings, context: "Skipped: this stage measures its reference or samples its data during the run.",
    conflicts=conflicts,
    teaches=lambda settings: "chat",
)
