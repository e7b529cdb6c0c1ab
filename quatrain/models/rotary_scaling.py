"""Rotary frequencies for texts longer than those of pretraining: linear and Llama 3.1's scaling.

Every scaling gives the inverse frequencies and a factor that cosines and sines are multiplied with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quatrain.models.config import RotaryScaling


def depends_on_length(scaling: RotaryScaling | None) -> bool:
    """Whether the frequencies change with the length of the text that is read."""
    return scaling is not None and scaling.kind in ("dynamic", "longrope")


def inverse_frequency(
    dim: int,
    theta: float,
    scaling: RotaryScaling | None,
    length: int,
    max_position_embeddings: int,
    device: torch.device | None = None,
) -> tuple[Tensor, float]:
    """The angle of one step for each pair of channels (dim / 2) in float32, and the factor on cosines and sines."""
    share = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    frequency = 1.0 / (theta**share)
    if scaling is None:
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.get("factor"), 1.0
    return _llama3(frequency, scaling), 1.0


def _llama3(frequency: Tensor, scaling: RotaryScaling) -> Tensor:
    """Long waves are slowed by the factor, short ones stay, those between are blended (Llama 3.1's code)."""
    factor, low, high = (scaling.get(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = scaling.get("original_max_position_embeddings")
    wavelength = 2 * math.pi / frequency
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / factor + smooth * frequency
