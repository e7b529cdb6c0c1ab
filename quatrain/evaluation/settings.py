"""Settings of evaluation: what is scored and sampled after each stage that trains a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quatrain.core.settings import Listing, Settings


class EvaluateSettings(Settings):
    """Scores `examples` examples of each held-out set, and samples each prompt at each temperature."""

    examples: int = Field(default=200, ge=1)
    prompts: Listing[str] = ()
    temperatures: Listing[Annotated[float, Field(ge=0, le=10)]] = (0.8,)
    max_new_tokens: int = Field(default=120, ge=1)
