"""Limits of quantization that are known without torch."""

from __future__ import annotations

FLOAT_ONLY_FAMILIES = ("gpt2", "phi3", "bloom", "gpt_neox")
"""Families whose files fuse or transpose linear layers, for which the formats of quantized folders have no place."""
