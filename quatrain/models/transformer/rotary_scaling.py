"""Rotary frequencies for texts longer than those of pretraining: linear, dynamic, YaRN, LongRoPE and Llama 3.1's
scaling.

Every scaling gives the inverse frequencies and a factor that cosines and sines are multiplied with. Where a number is
left out, it is what transformers takes for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quatrain.models.transformer.config import RotaryScaling


def depends_on_length(scaling: RotaryScaling | None) -> bool:
    """Whether the frequencies change with the length of the text that is read."""
    return scaling is not None and scaling.kind in ("dynamic", "longrope")


def original_length(scaling: RotaryScaling | None, max_position_embeddings: int) -> int:
    """Tokens of a text of pretraining, past which the frequencies change where they depend on the length."""
    known = scaling.get("original_max_position_embeddings") if scaling is not None else None
    return known or max_position_embeddings


def inverse_frequency(
    dim: int,
    theta: float,
    scaling: RotaryScaling | None,
    length: int,
    max_position_embeddings: int,
    device: torch.device | None = None,
) -> tuple[Tensor, float]:
    """The angle of one step for each pair of channels (dim / 2) in float32, and the factor on cosines and sines.

    `length` is that of the text, in tokens, for the scalings that depend on it.
    """
    if scaling is not None and scaling.kind == "dynamic":
        theta = _dynamic_base(dim, theta, scaling.get("factor"), length, max_position_embeddings)
    period = theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim)
    if scaling is None or scaling.kind == "dynamic":
        return 1.0 / period, 1.0
    original = original_length(scaling, max_position_embeddings)
    if scaling.kind == "yarn":
        return _yarn(period, theta, scaling, original, max_position_embeddings)
    if scaling.kind == "longrope":
        slowed = scaling.get("long_factor" if length > original else "short_factor")
        factor = scaling.get("factor") or max_position_embeddings / original
        return 1.0 / (torch.tensor(slowed, device=device) * period), _longrope_factor(scaling, factor, original)
    if scaling.kind == "llama3":
        return _llama3(1.0 / period, scaling, original), 1.0
    return 1.0 / period / scaling.get("factor"), 1.0


def _dynamic_base(dim: int, theta: float, factor: float, length: int, longest: int) -> float:
    """The base under which the slowest wave of a text of `length` tokens does not turn further than in one of
    `longest`.
    """
    if length <= longest or dim == 2:  # one pair of channels turns by 1 under every base
        return theta
    return float(theta * (factor * length / longest - (factor - 1)) ** (dim / (dim - 2)))


def _yarn(
    period: Tensor, theta: float, scaling: RotaryScaling, original: int, longest: int
) -> tuple[Tensor, float]:
    """Waves that turn often within the original length stay, those that hardly turn are slowed, with a ramp between."""
    factor = scaling.get("factor") or longest / original
    dim = 2 * period.shape[0]

    def channel(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.get("beta_fast") or 32), channel(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.arange(dim // 2, dtype=torch.float32, device=period.device)
    kept = 1 - ((ramp - low) / (high - low)).clamp(0, 1)
    return (1 - kept) / (factor * period) + kept / period, _yarn_factor(scaling, factor)


def _yarn_factor(scaling: RotaryScaling, factor: float) -> float:
    """How much larger the scores get, halved between queries and keys: 1 + ln(factor) / 10, or the ratio of two of
    these.
    """
    if (known := scaling.get("attention_factor")) is not None:
        return float(known)

    def magnitude(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(scale) / magnitude(over) if scale and over else magnitude(1)


def _longrope_factor(scaling: RotaryScaling, factor: float, original: int) -> float:
    if (known := scaling.get("attention_factor")) is not None:
        return float(known)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _llama3(frequency: Tensor, scaling: RotaryScaling, original: int) -> Tensor:
    """Long waves are slowed by the factor, short ones stay, those between are blended (Llama 3.1's code)."""
    factor, low, high = (scaling.get(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelength = 2 * math.pi / frequency
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / factor + smooth * frequency
