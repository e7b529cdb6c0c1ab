"""Multi-head latent attention: a small vector of each token stands for its keys and values of all heads.

Liu et al. 2024 (DeepSeek-V2, arXiv 2405.04434, section 2.1). The cache stores the vector and one rotated key for each
token. A step with few new tokens computes attention over these directly: the matrix that would project the vector to
keys is applied to the queries instead, and the one that would project it to values is applied to the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.attention import Attention
from quatrain.models.transformer.config import ModelConfig, RotaryScaling
from quatrain.models.transformer.context import AttentionMask, ForwardContext
from quatrain.models.transformer.norms import RMSNorm
from quatrain.models.transformer.positions import rotate

ABSORBED_TOKENS = 8
"""Up to so many new tokens of a row, attention over the stored vectors is cheaper than all keys and values."""


NORM_EPS = 1e-6
"""Of the norms of the latent vectors."""


class LatentAttention(Attention):
    """Attention from (B, T, hidden_size) to the same; its projections are named as in Hugging Face's DeepSeek-V3."""

    def __init__(self, config: ModelConfig, layer: int):
        nn.Module.__init__(self)
        latent = config.latent
        if latent is None:
            raise ValueError("a configuration without latent attention")
        self.layer, self.cross, self.latent = layer, False, latent
        self.kind = config.layer_types[layer]
        self.window = config.sliding_window if self.kind == "sliding" else None
        self.num_heads = self.num_kv_heads = config.num_attention_heads
        self.head_dim, self.softcap, self.sinks = config.head_dim, config.attention_softcap, None
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.scale = scale * _magnitude(config.rope_scaling) ** 2
        hidden, heads, bias = config.hidden_size, self.num_heads, config.attention_bias == "all"
        if latent.query_rank:
            self.q_a_proj = nn.Linear(hidden, latent.query_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(latent.query_rank, eps=NORM_EPS)
            self.q_b_proj = nn.Linear(latent.query_rank, heads * self.head_dim, bias=False)
        else:
            self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent.kv_rank + latent.rope_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(latent.kv_rank, eps=NORM_EPS)
        self.kv_b_proj = nn.Linear(latent.kv_rank, heads * (latent.nope_dim + latent.value_dim), bias=False)
        self.o_proj = nn.Linear(heads * latent.value_dim, hidden, bias=bias)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x (B, T, hidden_size) to the same shape. Raises InputError for a learned prefix of keys and values."""
        if context.prefix is not None:
            raise InputError("prefix tuning: latent attention has no keys and values of its own; use LoRA or prompts.")
        latent = self.latent
        queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if latent.query_rank else self.q_proj(x)
        query = queries.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
        stored, key = self.kv_a_proj_with_mqa(x).split((latent.kv_rank, latent.rope_dim), dim=-1)
        stored, key = self.kv_a_layernorm(stored)[:, None], key[:, None]  # one head: (B, 1, T, …)
        plain, rotated = query.split((latent.nope_dim, latent.rope_dim), dim=-1)
        cos, sin = (table.unsqueeze(-3) for table in context.rotary[self.kind])
        rotated, key = rotate(self._halves(rotated), cos, sin), rotate(self._halves(key), cos, sin)
        if context.cache is not None:
            stored, key = context.cache.append(self.layer, stored, key)
        mask = context.masks[self.kind]
        recorded = None if context.trace is None else context.trace.attentions
        absorbs = context.cache is not None and type(self.kv_b_proj) is nn.Linear
        # A graph that is exported has one way for every number of tokens.
        absorbs = absorbs and not torch.compiler.is_exporting() and x.shape[1] <= ABSORBED_TOKENS
        if absorbs and recorded is None and self.softcap is None:
            return self.o_proj(self._absorbed(plain, rotated, stored[:, 0], key[:, 0], mask))
        expanded = self.kv_b_proj(stored[:, 0]).view(*stored[:, 0].shape[:2], self.num_heads, -1).transpose(1, 2)
        keys, values = expanded.split((latent.nope_dim, latent.value_dim), dim=-1)
        keys = torch.cat((keys, key.expand(-1, self.num_heads, -1, -1)), dim=-1)
        query = torch.cat((plain, rotated), dim=-1)
        if mask.use_cpu_kernel and latent.value_dim == self.head_dim:  # They are rotated already.
            query, keys, values = query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
            return self.o_proj(self._cpu_kernel(query, keys, values, mask, None))
        return self.o_proj(self._attend(query, keys, values, mask, recorded))

    def _halves(self, x: Tensor) -> Tensor:
        """Channels in the layout of `rotate`: the first of each pair, then the second ones."""
        return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1) if self.latent.interleaved else x

    def _absorbed(self, plain: Tensor, rotated: Tensor, stored: Tensor, key: Tensor, mask: AttentionMask) -> Tensor:
        """Attention of queries (B, H, T, …) over the vectors (B, S, kv_rank) and rotated keys (B, S, rope_dim).

        Gives (B, T, H value_dim), without the keys and values of the heads.
        """
        batch, heads, length = plain.shape[:3]
        weight = self.kv_b_proj.weight.view(heads, -1, self.latent.kv_rank).to(plain.dtype)
        to_keys, to_values = weight.split((self.latent.nope_dim, self.latent.value_dim), dim=1)
        reduced = (plain @ to_keys).flatten(1, 2)  # (B, H T, kv_rank)
        scores = (reduced @ stored.mT + rotated.flatten(1, 2) @ key.mT).view(batch, heads, length, -1) * self.scale
        added = mask.additive(length, stored.shape[1], plain)
        scores = scores if added is None else scores + added
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(plain.dtype)
        mixed = (weights.flatten(1, 2) @ stored).view(batch, heads, length, -1)
        return (mixed @ to_values.mT).transpose(1, 2).flatten(2)


def _magnitude(scaling: RotaryScaling | None) -> float:
    """The factor of queries and of keys that DeepSeek's YaRN has besides the one of the rotary tables."""
    everywhere = None if scaling is None else scaling.get("mscale_all_dim")
    factor = 1.0 if scaling is None else scaling.get("factor") or 1.0
    return 0.1 * everywhere * math.log(factor) + 1.0 if everywhere and factor > 1 else 1.0
