"""Settings of the stages that align a model with preferences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quatrain.adapters.settings import AdapterSettings
from quatrain.core.settings import Settings
from quatrain.data.settings import DataSettings
from quatrain.training.settings import TrainSettings


class DPOStage(Settings):
    """Direct preference optimization (Rafailov et al., 2023).

    With a database, the model answers `prompts` questions `samples` times at `temperature`, and execution
    judges the answers; otherwise the pairs come from `data.preferences`. `sft_weight` weighs the loss of the
    chosen answers that is added.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    prompts: int = Field(default=2000, ge=1, le=10_000_000)
    samples: int = Field(default=4, ge=2, le=10_000)
    temperature: float = Field(default=1.0, gt=0, le=10)
    sft_weight: float = Field(default=0.0, ge=0)
    context: int | None = Field(default=None, ge=2)
    train: TrainSettings
    adapter: AdapterSettings | None = None
    data: DataSettings | None = None
    evaluate: bool = True
