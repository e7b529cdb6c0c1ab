"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762) with grouped keys and values (Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.cache import KVCache
from quatrain.models.config import ModelConfig
from quatrain.models.positions import rotate


def causal_mask(segments: Tensor, queries: int) -> Tensor:
    """Which key each of the last `queries` slots may see: (B, 1, queries, S), True where allowed.

    `segments` (B, S): a token sees the earlier tokens of its own segment and itself. Padding (segment 0)
    sees padding only, so that no row is empty.
    """
    length = segments.shape[1]
    slots = torch.arange(length, device=segments.device)
    earlier = slots[None, :] <= slots[length - queries :, None]
    same = segments[:, length - queries :, None] == segments[:, None, :]
    return (same & earlier)[:, None]


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
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None,
                cache: KVCache | None) -> Tensor:
        """x (B, T, C); rotary: cos and sin that broadcast to (B, H, T, D); mask (B, 1, T, S) or None for plain causal."""
        batch, length, _ = x.shape
        query = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        query = query.to(value.dtype)
        key = key.to(value.dtype)
        if self.num_kv_heads != self.num_heads:
            repeats = self.num_heads // self.num_kv_heads
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        mixed = F.scaled_dot_product_attention(
            query, key, value,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))
