"""Settings of the stages that make a model smaller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Problem, Settings

FLOAT_ONLY_FAMILIES = ("gpt2", "phi3", "bloom", "gpt_neox")
"""Families whose files fuse or transpose linear layers, for which the formats of quantized folders have no place."""


class QuantizeStage(Settings):
    """Weight-only quantization of the linear layers, the head left out.

    `int8` keeps one scale for each output channel; `int4` one for each `group` of a row's weights; `nf4` four bits a
    weight at the quantiles of a normal distribution, with a scale for each 64, itself of eight bits (QLoRA).
    """

    kind: Literal["quantize"] = "quantize"
    method: Literal["int8", "int4", "nf4"] = "int8"
    group: Literal[32, 64, 128] | None = Field(
        default=None, description="weights that share a scale (int4); the largest that divides the layers unless given"
    )
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        if self.group is not None and self.method != "int4":
            yield Problem(("group",), f'{self.group}; only method = "int4" reads it: leave it out', (("method",),))
