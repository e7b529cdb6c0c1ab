"""Names and limits of quantization; this module does not import torch."""

from __future__ import annotations

from typing import Literal

Method = Literal["int8", "int4", "nf4", "w8a8", "fp8"]
"""What linear layers are quantized to: the names of `compression.methods.METHODS`, for options and settings."""

BITS: dict[str, float] = {"int8": 8.5, "w8a8": 8.5, "fp8": 8.5, "int4": 5.0, "nf4": 5.0}
"""Bits of a weight of each method with its scales, at most."""

FLOAT_ONLY_FAMILIES = (
    *("gpt2", "phi3", "bloom", "gpt_neox", "gpt_oss", "granitemoe", "openai-gpt", "falcon", "glm4", "qwen3_5_text"),
)
"""Families whose files fuse or transpose linear layers, so that quantized model folders cannot store them."""

CALIBRATED: dict[str, tuple[str, ...]] = {
    "nearest": (),
    "gptq": ("int4", "int8"),
    "awq": ("int4", "int8"),
    "smoothquant": ("w8a8",),
}
"""The methods that each calibration serves; nearest: all, for it reads nothing."""
