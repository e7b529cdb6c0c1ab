"""Multi-head attention with grouped keys and values.

Vaswani et al. 2017 (arXiv 1706.03762), Ainslie et al. 2023 (arXiv 2305.13245).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models import kernels
from quatrain.models.cache import KVCache
from quatrain.models.config import ModelConfig
from quatrain.models.positions import rotate


def causal_mask(segments: Tensor, queries: int) -> Tensor:
    """Which key each of the last `queries` slots may see: (B, queries, S), True where allowed.

    `segments` (B, S): a token sees the earlier tokens of its own segment and itself. Padding (segment 0)
    sees padding only, so that no row is empty.
    """
    length = segments.shape[1]
    slots = torch.arange(length, device=segments.device)
    earlier = slots[None, :] <= slots[length - queries :, None]
    same = segments[:, length - queries :, None] == segments[:, None, :]
    return same & earlier


@dataclass(frozen=True)
class Sight:
    """What every layer of one forward pass sees alike.

    rotary: cosines and sines (T, D) or (B, T, D), None where positions are learned. mask (B or 1, T, S): which keys are
    seen, None for plain causal. bias (B or 1, T, T): the same as 0 and -inf, given where the hand-written pass is to
    be taken.
    """

    rotary: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    cache: KVCache | None = None


def bias_of(mask: Tensor | None, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask as what is added to the scores: 0 where a key is seen, -inf elsewhere."""
    if mask is None:
        return torch.full((1, length, length), float("-inf"), dtype=dtype, device=device).triu_(1)
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, float("-inf"))


class Attention(nn.Module):
    """Causal self-attention over (B, T, hidden_size), its projections unfused and named as in Hugging Face's Llama."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        batch, length, _ = x.shape
        query = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        key = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        value = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        mixed = (
            self._mix(query, key, value, sight) if sight.bias is None else self._mix_by_hand(query, key, value, sight)
        )
        return self.o_proj(mixed)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        """PyTorch's attention, with the cache. Tensors come as (B, T, H, D); gives (B, T, H D)."""
        batch, length = query.shape[:2]
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if sight.rotary is not None:
            cos, sin = (table.unsqueeze(-3) for table in sight.rotary)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if sight.cache is not None:
            key, value = sight.cache.append(self.layer, key, value)
        key, value = self._spread(key, 1), self._spread(value, 1)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if sight.mask is None else sight.mask[:, None],
            is_causal=sight.mask is None and length > 1,
        )
        return mixed.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)

    def _mix_by_hand(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        half = self.head_dim // 2
        cos, sin = (None, None) if sight.rotary is None else (table[..., :half].unsqueeze(-2) for table in sight.rotary)
        return kernels.AttentionFunction.apply(
            query, self._spread(key, 2), self._spread(value, 2), cos, sin, sight.bias
        )

    def _spread(self, x: Tensor, axis: int) -> Tensor:
        """Repeats each group's head for the query heads that share it."""
        if self.num_kv_heads == self.num_heads:
            return x
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=axis)
