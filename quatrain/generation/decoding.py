"""The few settings of decoding that recipes and prompts name; `SamplingParams` has all of them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from quatrain.core.settings import Settings
from quatrain.generation.params import SamplingParams


class Decoding(Settings):
    """How completions are generated: greedy at temperature 0."""

    max_new_tokens: int = Field(default=64, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def params(self, **more: Any) -> SamplingParams:
        """The parameters for the engine or an endpoint."""
        return SamplingParams(**self.model_dump(), **more)

    @property
    def label(self) -> str:
        """A short name for tables."""
        how = f"temperature {self.temperature:g}" if self.temperature else "greedy"
        filters = "".join(f", {name} {value:g}" for name in ("top_p", "top_k") if (value := getattr(self, name)))
        return f"{how}{filters}, {self.max_new_tokens} tokens"
