"""How a transformer knows where a token is.

Rotary (Su et al. 2021, arXiv 2104.09864, in the half-rotation layout of Hugging Face's Llama, whole or part of a head),
sinusoidal (Vaswani et al. 2017, arXiv 1706.03762), ALiBi (Press et al. 2021, arXiv 2108.12409) and relative bias
(Raffel et al. 2019, arXiv 1910.10683). Learned positions are a table of the stack.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig, RotaryScaling
from quatrain.models.transformer.rotary_scaling import depends_on_length, inverse_frequency, original_length

SMALL_TABLE = 8192
"""Positions up to which a table is made whole, so that no position has to be read back from a device."""


def positions_in_segments(segments: Tensor) -> Tensor:
    """The place of each slot within its own run of one segment: (B, S) from segments (B, S)."""
    slots = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return slots - torch.where(begins, slots, 0).cummax(dim=1).values


def segment_lengths(segments: Tensor) -> Tensor:
    """How many slots the run of one segment has that each slot is of: (B, S) from segments (B, S)."""
    slots = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    ends = torch.ones_like(segments, dtype=torch.bool)
    ends[:, :-1] = segments[:, 1:] != segments[:, :-1]
    last = torch.where(ends, slots, segments.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return positions_in_segments(segments) + last - slots + 1


def positions_without_padding(input_ids: Tensor, padding: int, segments: Tensor | None) -> Tensor:
    """The place of each token among those of its segment that are no padding token: (B, T); padding is at -1."""
    counted = input_ids != padding
    total = counted.long().cumsum(1)
    before = torch.zeros_like(total)
    if segments is not None:
        begins = torch.ones_like(counted)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        before = torch.where(begins, total - counted.long(), 0).cummax(dim=1).values
    return torch.where(counted, total - before - 1, -1)


class Rotary:
    """Cosines and sines of one base and scaling; the tables of one device and dtype are kept and grow when needed."""

    def __init__(self, config: ModelConfig, theta: float, scaling: RotaryScaling | None):
        self.config, self.theta, self.scaling = config, theta, scaling
        self.dim = config.rotary_dim or config.head_dim
        self._tables: dict[bool, tuple[Tensor, Tensor]] = {}

    def at(
        self, positions: Tensor | None, past: int, length: int, like: Tensor, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, rotary_dim), or (B, T, rotary_dim) where positions (B, T) are given, in like's dtype.

        Where the frequencies depend on the text's length, segments (B, past + T) say which texts there are: under
        LongRoPE each has those of its own length. A dynamic base is that of the batch's last position.
        """
        total, original = past + length, original_length(self.scaling, self.config.max_position_embeddings)
        if positions is not None:
            limit = self.config.context_length
            small = limit <= SMALL_TABLE and not depends_on_length(self.scaling)
            total = limit if small else int(positions.max()) + 1
        is_long = depends_on_length(self.scaling) and total > original
        cos, sin = self._table(total, is_long, like)
        if positions is None:
            return cos[past:total], sin[past:total]
        if segments is None or not is_long or self.scaling is None or self.scaling.kind != "longrope":
            return cos[positions], sin[positions]
        short_cos, short_sin = self._table(total, False, like)
        far = (segment_lengths(segments)[:, past:] > original)[..., None]
        return (
            torch.where(far, cos[positions], short_cos[positions]),
            torch.where(far, sin[positions], short_sin[positions]),
        )

    def _table(self, total: int, is_long: bool, like: Tensor) -> tuple[Tensor, Tensor]:
        known = self._tables.get(is_long)
        fits = known is not None and known[0].device == like.device and known[0].dtype == like.dtype
        fits = fits and known is not None and known[0].shape[0] >= total
        if known is None or not fits or (is_long and self.scaling is not None and self.scaling.kind == "dynamic"):
            size = min(max(total, 2 * known[0].shape[0] if known else 0, SMALL_TABLE), self._most(total))
            # Kept tables must serve training too, even where the first forward is in inference mode.
            with torch.inference_mode(False):
                known = self.tables(size, total if is_long else 0, like.device)
                known = known[0].to(like.dtype), known[1].to(like.dtype)
            self._tables[is_long] = known
        return known

    def _most(self, total: int) -> int:
        return max(total, self.config.max_position_embeddings)

    def tables(self, size: int, total: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines (size, rotary_dim) in float32, for a text of `total` tokens where the scaling asks."""
        frequency, factor = inverse_frequency(
            self.dim, self.theta, self.scaling, total, self.config.max_position_embeddings, device
        )
        angles = torch.outer(torch.arange(size, dtype=torch.float32, device=device), frequency)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * factor, angles.sin() * factor


def make_rotary(config: ModelConfig) -> dict[str, Rotary]:
    """The rotary positions of each type of layer: sliding ones may have their own base, and then their own scaling."""
    if config.position != "rotary":
        return {}
    whole = Rotary(config, config.rope_theta, config.rope_scaling)
    local = whole
    if config.local_rope_theta is not None:
        local = Rotary(config, config.local_rope_theta, config.local_rope_scaling)
    return {"full": whole, "sliding": local}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of channels (i, i + R/2) of the first R of x (B, H, T, D); cos, sin (…, T, R) broadcast to x."""
    width = cos.shape[-1]
    turned, rest = (x, None) if width == x.shape[-1] else (x[..., :width], x[..., width:])
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if rest is None else torch.cat((turned, rest), dim=-1)


def sinusoidal_table(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """The fixed table (length, size): sines of all frequencies, then cosines, as Marian lays them out."""
    exponent = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
    angles = torch.outer(torch.arange(length, dtype=torch.float64), 10000.0**-exponent)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float().to(device)


def alibi_slopes(heads: int) -> Tensor:
    """The slope (H) of each head: 2^(-8 i / n) for a power of two n, the odd steps of 2n for the heads beyond."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)


def relative_buckets(distances: Tensor, buckets: int, max_distance: int, causal: bool) -> Tensor:
    """T5's bucket of each distance (key slot - query slot): exact when near, logarithmic when far."""
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
