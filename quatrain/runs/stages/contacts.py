"""The contacts stage: an EvoFormer learns from generated families of proteins which residues touch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from quatrain.core.settings import Settings
from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageSpec, deferred
from quatrain.training.settings import TrainSettings


class EvoformerSettings(Settings):
    """Sizes of the EvoFormer; `quatrain.models.protein.evoformer` explains them. AlphaFold 2's are 256, 128, 48."""

    hidden_size: int = Field(default=32, ge=1, le=10_000)
    pair_size: int = Field(default=32, ge=1, le=10_000)
    num_hidden_layers: int = Field(default=2, ge=1, le=1_000)
    msa_heads: int = Field(default=4, ge=1, le=1_000)
    pair_heads: int = Field(default=4, ge=1, le=1_000)
    head_size: int = Field(default=8, ge=1, le=10_000)
    outer_size: int = Field(default=8, ge=1, le=10_000)
    triangle_size: int = Field(default=32, ge=1, le=10_000)
    expansion: int = Field(default=2, ge=1, le=100)
    recycles: int = Field(default=1, ge=0, le=100)


class ContactsStage(StageSettings):
    """Generates `families` families for training and `held_out` others, each of `depth` sequences of `length` residues.

    `train.batch_tokens` counts residues of alignments: depth times length for each family.
    """

    batches_of_tokens: ClassVar[bool] = False

    kind: Literal["contacts"] = "contacts"
    families: int = Field(default=400, ge=2, le=1_000_000)
    held_out: int = Field(default=40, ge=1, le=100_000)
    depth: int = Field(default=32, ge=2, le=10_000, description="sequences of a family")
    length: int = Field(default=40, ge=24, le=2_000, description="residues of a protein")
    evoformer: EvoformerSettings = EvoformerSettings()
    train: TrainSettings


SPEC = StageSpec(
    ContactsStage,
    run=deferred("quatrain.runs.stages._contacts:run"),
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._contacts:prepare"),
)
