"""Limits of quantization; this module does not import torch."""

from __future__ import annotations

FLOAT_ONLY_FAMILIES = ("gpt2", "phi3", "bloom", "gpt_neox", "gpt_oss")
"""Families whose files fuse or transpose linear layers, so that quantized model folders cannot store them."""

CALIBRATED: dict[str, tuple[str, ...]] = {
    "nearest": (),
    "gptq": ("int4", "int8"),
    "awq": ("int4", "int8"),
    "smoothquant": ("w8a8",),
}
"""The methods that each calibration serves; nearest: all, for it reads nothing."""
