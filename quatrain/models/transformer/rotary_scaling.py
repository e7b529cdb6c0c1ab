"""Rotary scalings for texts longer than those of pre-training: linear, dynamic, YaRN, LongRoPE and Llama 3.1's.

Each scaling gives inverse frequencies and a factor for cosines and sines. Missing parameters have the defaults of
transformers. The papers are listed at `RotaryScaling`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quatrain.models.transformer.config import RotaryScaling


def depends_on_length(scaling: RotaryScaling | None) -> bool:
    """Whether the frequencies depend on the length of the text."""
    return scaling is not None and scaling.kind in ("dynamic", "longrope")


def original_length(scaling: RotaryScaling | None, max_position_embeddings: int) -> int:
    """The context length of pre-training; longer texts get other frequencies if these depend on the length."""
    length = scaling.get("original_max_position_embeddings") if scaling is not None else None
    return length or max_position_embeddings


def inverse_frequency(
    dim: int,
    theta: float,
    scaling: RotaryScaling | None,
    length: int,
    max_position_embeddings: int,
    device: torch.device | None = None,
) -> tuple[Tensor, float]:
    """Inverse frequencies (dim / 2) in float32, and the factor for cosines and sines.

    `length` is the text length in tokens, for scalings that depend on it.
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
        factors = scaling.get("long_factor" if length > original else "short_factor")
        factor = scaling.get("factor") or max_position_embeddings / original
        return 1.0 / (torch.tensor(factors, device=device) * period), _longrope_factor(scaling, factor, original)
    if scaling.kind == "llama3":
        return _llama3(1.0 / period, scaling, original), 1.0
    return 1.0 / period / scaling.get("factor"), 1.0


def _dynamic_base(dim: int, theta: float, factor: float, length: int, longest: int) -> float:
    """The NTK-aware base: the lowest frequency turns as far in `length` tokens as it did in `longest`."""
    if length <= longest or dim == 2:  # With one pair of channels the frequency is 1 for every base.
        return theta
    return float(theta * (factor * length / longest - (factor - 1)) ** (dim / (dim - 2)))


def _yarn(period: Tensor, theta: float, scaling: RotaryScaling, original: int, longest: int) -> tuple[Tensor, float]:
    """High frequencies are unchanged, low ones are divided by the factor, with a linear ramp between them."""
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
    share = 1 - ((ramp - low) / (high - low)).clamp(0, 1)
    return (1 - share) / (factor * period) + share / period, _yarn_factor(scaling, factor)


def _yarn_factor(scaling: RotaryScaling, factor: float) -> float:
    """YaRN's factor of queries and of keys: 1 + ln(factor) / 10, or the ratio of two such terms (DeepSeek)."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1)


def _longrope_factor(scaling: RotaryScaling, factor: float, original: int) -> float:
    """LongRoPE's factor of queries and of keys: sqrt(1 + ln(factor) / ln(original))."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _llama3(frequency: Tensor, scaling: RotaryScaling, original: int) -> Tensor:
    """Low frequencies are divided by the factor, high ones unchanged, those between interpolated (Llama 3.1's code)."""
    factor, low, high = (scaling.get(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelength = 2 * math.pi / frequency
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / factor + smooth * frequency
