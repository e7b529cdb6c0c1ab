"""Position encodings.

Rotary (Su et al. 2021, arXiv 2104.09864; in the half-rotation layout of Hugging Face's Llama, whole or partial),
sinusoidal (Vaswani et al. 2017, arXiv 1706.03762), ALiBi (Press et al. 2021, arXiv 2108.12409) and relative bias
(Raffel et al. 2019, arXiv 1910.10683). Learned positions are a table of the stack.

Rotary frequencies can be scaled for texts longer than those of pre-training: linear, dynamic, YaRN, LongRoPE, Llama
3.1's scaling and Gemma 4's proportional one. Each gives the inverse frequencies and a factor on cosines and sines, with
transformers' defaults.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig, RotaryScaling

SMALL_TABLE = 8192
"""Minimum length of a rotary table. Shorter texts need no look at their positions, which would wait for a GPU."""


def positions_in_segments(segments: Tensor) -> Tensor:
    """The position of each token within its segment: (B, S) from segments (B, S)."""
    slots = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return slots - torch.where(begins, slots, 0).cummax(dim=1).values


def segment_lengths(segments: Tensor) -> Tensor:
    """The length of the segment that each token belongs to: (B, S) from segments (B, S)."""
    slots = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    ends = torch.ones_like(segments, dtype=torch.bool)
    ends[:, :-1] = segments[:, 1:] != segments[:, :-1]
    last = torch.where(ends, slots, segments.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return positions_in_segments(segments) + last - slots + 1


def positions_without_padding(input_ids: Tensor, pad_token_id: int, segments: Tensor | None) -> Tensor:
    """The position (B, T) of each token within its segment, not counting padding tokens, which are at -1 (RoBERTa)."""
    counted = input_ids != pad_token_id
    total = counted.long().cumsum(1)
    before = torch.zeros_like(total)
    if segments is not None:
        begins = torch.ones_like(counted)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        before = torch.where(begins, total - counted.long(), 0).cummax(dim=1).values
    return torch.where(counted, total - before - 1, -1)


class Rotary:
    """Rotary cosines and sines of one base, scaling and head width, by default the config's.

    The tables are cached and grow on demand.
    """

    def __init__(self, config: ModelConfig, theta: float, scaling: RotaryScaling | None, head_dim: int | None = None):
        self.config, self.theta, self.scaling = config, theta, scaling
        self.dim = config.rotary_dim or head_dim or config.head_dim
        self._tables: dict[bool, tuple[Tensor, Tensor]] = {}

    def at(
        self,
        positions: Tensor | None,
        past: int,
        length: int,
        like: Tensor,
        segments: Tensor | None = None,
        text_length: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, rotary_dim), or (B, T, rotary_dim) for positions (B, T), in the dtype of `like`.

        `past` tokens precede the `length` new ones. With LongRoPE the frequencies depend on the length of each text,
        given by segments (B, past + T). A dynamic base depends on the last position in the batch. `text_length` is
        the final length of texts of which only the beginnings are processed.
        """
        total, original = past + length, original_length(self.scaling, self.config.max_position_embeddings)
        if positions is not None:
            limit = self.config.context_length
            small = limit <= SMALL_TABLE and not depends_on_length(self.scaling)
            total = limit if small else text_length or int(positions.max()) + 1
        total = max(total, text_length or 0)
        is_long = depends_on_length(self.scaling) and total > original
        cos, sin = self._table(total, is_long, like)
        if positions is None:
            return cos[past : past + length], sin[past : past + length]
        if segments is None or not is_long or self.scaling is None or self.scaling.kind != "longrope":
            return cos[positions], sin[positions]
        short_cos, short_sin = self._table(total, False, like)
        is_far = (segment_lengths(segments)[:, past:] > original)[..., None]
        return (
            torch.where(is_far, cos[positions], short_cos[positions]),
            torch.where(is_far, sin[positions], short_sin[positions]),
        )

    def _table(self, total: int, is_long: bool, like: Tensor) -> tuple[Tensor, Tensor]:
        cached = self._tables.get(is_long)
        fits = cached is not None and cached[0].device == like.device and cached[0].dtype == like.dtype
        fits = fits and cached is not None and cached[0].shape[0] >= total
        if cached is None or not fits or (is_long and self.scaling is not None and self.scaling.kind == "dynamic"):
            limit = max(total, self.config.max_position_embeddings)
            size = min(max(total, 2 * cached[0].shape[0] if cached else 0, SMALL_TABLE), limit)
            # A table cached during inference must also serve training.
            with torch.inference_mode(False):
                cached = self.tables(size, total if is_long else 0, like.device)
                cached = cached[0].to(like.dtype), cached[1].to(like.dtype)
            self._tables[is_long] = cached
        return cached

    def tables(self, size: int, total: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines (size, rotary_dim) in float32; `total` is the text length, if the scaling depends on it."""
        frequency, factor = inverse_frequency(
            self.dim, self.theta, self.scaling, total, self.config.max_position_embeddings, device
        )
        angles = torch.outer(torch.arange(size, dtype=torch.float32, device=device), frequency)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * factor, angles.sin() * factor


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
    if scaling.kind == "proportional":
        turning = int(scaling.get("partial_rotary_factor", 1.0) * dim // 2)
        slow = torch.arange(dim // 2, device=device) >= turning
        return (1.0 / period).masked_fill(slow, 0.0) / scaling.get("factor", 1.0), 1.0
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


def make_rotary(config: ModelConfig) -> dict[str, Rotary]:
    """Rotary positions by type of layer; sliding-window layers may have their own base and scaling."""
    if config.position != "rotary":
        return {}
    width = config.head_dim
    full = local = Rotary(config, config.rope_theta, config.rope_scaling, config.full_head_dim or width)
    if config.local_rope_theta is not None:
        local = Rotary(config, config.local_rope_theta, config.local_rope_scaling, width)
    elif config.full_head_dim:
        local = Rotary(config, config.rope_theta, config.rope_scaling, width)
    return {"full": full, "sliding": local}


def query_scale(config: ModelConfig, positions: Tensor | None, past: int, x: Tensor) -> Tensor | None:
    """Factors of the queries of x (B, T, C) by position: (B or 1, T, 1, 1), or None if `config` has no growth."""
    if not config.query_growth:
        return None
    if positions is None:
        positions = torch.arange(past, past + x.shape[1], device=x.device)[None]
    periods = positions.div(original_length(config.rope_scaling, 1), rounding_mode="floor")
    return (1 + config.query_growth * torch.log1p(periods.float())).to(x.dtype)[..., None, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel pairs (i, i + R/2) of the first R channels of x (B, H, T, D); cos, sin (…, T, R) broadcast."""
    width = cos.shape[-1]
    rotated, rest = (x, None) if width == x.shape[-1] else (x[..., :width], x[..., width:])
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated if rest is None else torch.cat((rotated, rest), dim=-1)


def to_halves(x: Tensor, width: int, layout: str) -> Tensor:
    """Reorders the first `width` channels of x (…, D) from another rotary layout to the pairs (i, i + width / 2).

    Done to queries and keys alike it leaves their products as they are, so that `rotate` serves every layout.
    """
    rotated = x[..., :width]
    if layout == "interleaved":
        rotated = rotated.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    else:
        rotated = rotated.roll(width // 2, dims=-1)
    return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), dim=-1)


def timing_table(length: int, width: int) -> Tensor:
    """Whisper's encoder positions (length, width): sines, then cosines, of wavelengths from 2 π to 20,000 π.

    Marian's `sinusoidal_table` divides the logarithms of the wavelengths by width / 2, this one by width / 2 - 1.
    """
    step = math.log(10000.0) / max(width // 2 - 1, 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(width // 2, dtype=torch.float32))
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def sinusoidal_table(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """The sinusoidal table (length, size): the sines of all frequencies, then the cosines (Marian's layout)."""
    exponent = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
    angles = torch.outer(torch.arange(length, dtype=torch.float64), 10000.0**-exponent)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float().to(device)


@cache
def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """ALiBi's slope of each head (H): 2^(-8 i / n) for n a power of two; further heads take the odd steps of 2n."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    with torch.inference_mode(False):  # Slopes of a generating model must also serve training.
        return torch.tensor(slopes, device=device)


def log_buckets(distances: Tensor, buckets: int, longest: int) -> Tensor:
    """DeBERTa's bucket of each distance (query - key position), from -buckets + 1 to buckets - 1.

    Distances below half of `buckets` have their own, those up to `longest` share logarithmic ones.
    """
    middle = buckets // 2
    far = distances.abs().clamp(min=max(middle - 1, 1)).float()
    scale = math.log((longest - 1) / middle) if longest - 1 != middle else 1.0
    shared = ((far / middle).log() / scale * (middle - 1)).ceil() + middle
    return torch.where(distances.abs() <= middle, distances, (shared * distances.sign()).long())


def relative_buckets(distances: Tensor, buckets: int, max_distance: int, causal: bool) -> Tensor:
    """T5's bucket of each distance (key - query position): exact if near, logarithmic if far."""
    offset = torch.zeros_like(distances)
    if causal:
        distances = (-distances).clamp(min=0)
    else:
        buckets //= 2
        offset = (distances > 0).long() * buckets
        distances = distances.abs()
    exact = buckets // 2
    far = (distances.float().clamp(min=1) / exact).log() / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + far.long()).clamp(max=buckets - 1)
    return offset + torch.where(distances < exact, distances, far)
