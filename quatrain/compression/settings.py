"""Settings of the stages that make a model smaller."""

from __future__ import annotations

from typing import Literal

from quatrain.settings import Settings

FLOAT_ONLY_FAMILIES = ("gpt2", "phi3", "bloom", "gpt_neox")
"""Families whose files fuse or transpose their linear layers, for which the format of int8 folders has no place."""


class QuantizeStage(Settings):
    """Weight-only quantization of the linear layers, the head left out.

    `int8` keeps one scale for each output channel; `nf4` four bits a weight at the quantiles of a normal distribution,
    with a scale for each 64, itself of eight bits (QLoRA).
    """

    kind: Literal["quantize"] = "quantize"
    method: Literal["int8", "nf4"] = "int8"
    evaluate: bool = True
