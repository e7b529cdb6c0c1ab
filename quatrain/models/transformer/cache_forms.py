"""How the KV cache stores keys and values: as floats, or rounded to 8 or 4 bits with scales of their own.

Each key and value of a head is rounded alone, so a row of the cache depends on nothing but its token: slots are copied,
moved, shared and reordered as bytes, and a text gives the same numbers in any batch. KIVI (Liu et al. 2024, arXiv
2402.02750) shows where the error lies; unlike there, keys have their scales per token and not per channel, which needs
no block of tokens that stays in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.config import CacheFormat, ModelConfig

LARGEST_GROUP = 32
"""Channels of a head that share a scale and a minimum in int4."""


@dataclass(frozen=True)
class CacheForm:
    """The bytes of one key or value of a head with `head_dim` channels: its codes, then its scales in bfloat16.

    int8: codes from -127 to 127 and one scale. int4: two codes from 0 to 15 in a byte, the first in the low bits, and
    for every `group` channels a scale and a minimum.
    """

    name: str
    head_dim: int
    bits: int
    group: int

    @property
    def groups(self) -> int:
        """Groups of channels with a scale of their own."""
        return self.head_dim // self.group

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes, an even number, so that the scales are aligned."""
        return -(-self.head_dim * self.bits // 16) * 2

    @property
    def row_bytes(self) -> int:
        """Bytes of a key or a value of one head."""
        return self.code_bytes + 2 * self.groups * (1 if self.bits == 8 else 2)

    def encode(self, x: Tensor) -> Tensor:
        """The bytes (…, row_bytes) of keys or values (…, head_dim). What is not finite stays so."""
        grouped = x.float().unflatten(-1, (self.groups, self.group))
        if self.bits == 8:
            scale = (grouped.abs().amax(-1) / 127).bfloat16()
            codes = (grouped / _divisor(scale)).round_().clamp_(-127, 127).flatten(-2)
            packed, scales = codes.nan_to_num_(0.0).to(torch.int8).view(torch.uint8), scale
        else:
            least = grouped.amin(-1).bfloat16()
            scale = ((grouped.amax(-1) - least.float()) / 15).bfloat16()
            codes = ((grouped - least.float()[..., None]) / _divisor(scale)).round_().clamp_(0, 15).flatten(-2)
            pairs = F.pad(codes.nan_to_num_(0.0).to(torch.uint8), (0, 2 * self.code_bytes - self.head_dim))
            packed, scales = pairs[..., 0::2] | pairs[..., 1::2] << 4, torch.cat((scale, least), -1)
        if self.bits == 8 and self.code_bytes > self.head_dim:
            packed = F.pad(packed, (0, self.code_bytes - self.head_dim))
        return torch.cat((packed, scales.contiguous().view(torch.uint8)), -1)

    def decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """The keys or values (…, head_dim) of bytes (…, row_bytes)."""
        scales = stored[..., self.code_bytes :].view(torch.bfloat16).to(dtype)
        if self.bits == 8:
            codes = stored[..., : self.head_dim].view(torch.int8).to(dtype)
            return codes * scales if self.groups == 1 else self._scaled(codes, scales)
        packed = stored[..., : self.code_bytes]
        pairs = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)[..., : self.head_dim]
        scale, least = scales.chunk(2, -1)
        grouped = pairs.to(dtype).unflatten(-1, (self.groups, self.group))
        return torch.addcmul(least[..., None], grouped, scale[..., None]).flatten(-2)

    def _scaled(self, codes: Tensor, scales: Tensor) -> Tensor:
        return (codes.unflatten(-1, (self.groups, self.group)) * scales[..., None]).flatten(-2)


def row_bytes(head_dim: int, dtype: str) -> int:
    """Bytes of a key or value of one head in the KV cache: in a float's dtype, or rounded to "int8" or "int4"."""
    if dtype in get_args(CacheFormat):
        return cache_form(dtype, head_dim).row_bytes
    return int(head_dim * getattr(torch, dtype).itemsize)


def kv_bytes(config: ModelConfig, context: int, dtype: str, *, windows: int) -> int:
    """Bytes of the keys and values of one text of `context` tokens in all layers that store some.

    A sliding layer stores `windows` times its window.
    """
    window, total = windows * (config.sliding_window or context), 0
    for layer in config.caching_layers:
        heads, *widths = config.cache_shape(layer)
        slots = min(context, window) if config.layer_types[layer] == "sliding" else context
        total += slots * heads * sum(row_bytes(width, dtype) for width in widths)
    return total


def _divisor(scale: Tensor) -> Tensor:
    """A scale (…, groups) as a divisor (…, groups, 1); 1 where all codes are 0."""
    scale = scale.float()[..., None]
    return torch.where(scale == 0, 1.0, scale)


@cache
def cache_form(name: str, head_dim: int) -> CacheForm:
    """The form of a cache for heads of so many channels. Raises InputError for an unknown name."""
    if name == "int8":
        return CacheForm(name, head_dim, 8, head_dim)
    if name == "int4":
        group = next(size for size in range(min(head_dim, LARGEST_GROUP), 0, -1) if head_dim % size == 0)
        return CacheForm(name, head_dim, 4, group if group >= 8 else head_dim)
    raise InputError(f'kv_cache: {format_value(name)}; must be "int8" or "int4", or None for the dtype of the model')
