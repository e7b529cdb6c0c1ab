"""Multi-head self-attention and cross-attention, with grouped keys and values.

Vaswani et al. 2017 (arXiv 1706.03762), Ainslie et al. 2023 (arXiv 2305.13245). Four implementations give the same
result: PyTorch's `scaled_dot_product_attention`; FlexAttention on CUDA for cases that PyTorch's fast kernels do not
cover; a hand-written kernel for training on the CPU; and explicit attention, whose weights can be recorded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.kernels import cpu, flex
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import AttentionMask, ForwardContext
from quatrain.models.transformer.norms import BareRMSNorm, make_query_key_norm
from quatrain.models.transformer.positions import rotate, to_halves


class Attention(nn.Module):
    """Attention from (B, T, hidden_size) to the same, its projections unfused and named as in Hugging Face's Llama.

    With `cross`, queries come from x and keys and values from the encoder's last hidden states.
    """

    def __init__(self, config: ModelConfig, layer: int, cross: bool = False):
        super().__init__()
        self.layer, self.cross = layer, cross
        self.kind = config.layer_types[layer]
        self.window = config.sliding_window if self.kind == "sliding" and not cross else None
        self.num_heads = config.num_attention_heads
        self.num_kv_heads, self.head_dim = config.attention_sizes(layer)
        self.source = layer if cross else config.kv_source(layer)
        """The layer whose keys and values this one uses: itself, or an earlier one of its type."""
        shares = range(config.num_hidden_layers - config.shared_kv_layers, config.num_hidden_layers)
        self.lends = not cross and any(config.kv_source(later) == layer for later in shares)
        self.scale = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        if config.position == "disentangled" and config.attention_scale is None:
            self.scale *= 3**-0.5  # Three terms: content to content, content to distance, distance to content.
        if config.attention_scale_by_layer == "inverse":
            self.scale /= layer + 1
        self.softcap = config.attention_softcap
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=bias in ("qkv", "all", "all_but_key"))
        self.k_proj: Any = None
        self.v_proj: Any = None
        if self.source == layer:
            self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias in ("qkv", "all"))
            if not (config.keys_as_values and self.kind == "full"):
                self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias in ("qkv", "all", "all_but_key"))
        self.gate_proj = nn.Linear(config.hidden_size, query_size, bias=False) if config.attention_gate else None
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bias in ("output", "all", "all_but_key"))
        self.q_norm = make_query_key_norm(config, self.num_heads, self.head_dim)
        has_keys = self.k_proj is not None
        self.k_norm = make_query_key_norm(config, self.num_kv_heads, self.head_dim) if has_keys else None
        self.v_norm = BareRMSNorm(config.norm_eps) if config.value_norm and has_keys else None
        self.sinks = nn.Parameter(torch.zeros(self.num_heads)) if config.attention_sinks and not cross else None
        self.norms_whole = config.query_key_norm == "whole"
        self.rotates = not cross and layer not in config.layers_without_positions
        self.rotary_dim, self.rotary_layout = config.rotary_dim or self.head_dim, config.rotary_layout

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        query = self._heads(self.q_proj(x), self.num_heads, self.q_norm)
        if self.cross:
            output, without_keys = self._cross_attention(query, context), context.masks["cross"].without_keys
            return self.o_proj(output if without_keys is None else output.masked_fill(without_keys[..., None], 0.0))
        key, value = context.lent[self.source] if self.k_proj is None else self._keys_values(x)
        query = query if context.query_scale is None else query * context.query_scale
        mask = context.masks[self.kind]
        rotary = context.rotary.get(self.kind) if self.rotates else None
        if rotary is not None:
            query, key = self._in_halves(query), self._in_halves(key) if self.k_proj is not None else key
        if context.distances is not None:
            mask = self._with_distances(mask, query, key, *context.distances)
        use_cpu_kernel = mask.use_cpu_kernel and context.prefix is None
        if not use_cpu_kernel:
            query = query.transpose(1, 2)
            if rotary is not None:
                query = rotate(query, *(table.unsqueeze(-3) for table in rotary))
            if self.k_proj is not None:
                key, value = self._stored(key.transpose(1, 2), value.transpose(1, 2), rotary, context)
        if self.lends:
            context.lent[self.layer] = key, value
        if use_cpu_kernel:
            return self._project(self._cpu_kernel(query, key, value, mask, rotary), x)
        recorded = None if context.trace is None else context.trace.attentions
        return self._project(self._attend(query, key, value, mask, recorded), x)

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, T, G, D) of x, normalized if the family does so."""
        projected = self.k_proj(x)
        value = self._heads(projected if self.v_proj is None else self.v_proj(x), self.num_kv_heads)
        value = value if self.v_norm is None else self.v_norm(value)
        return self._heads(projected, self.num_kv_heads, self.k_norm), value

    def _stored(
        self, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor] | None, context: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """All keys, rotated, and values (B, G, S, D) to attend to: given, of a learned prefix and of the cache."""
        if rotary is not None:
            key = rotate(key, *(table.unsqueeze(-3) for table in rotary))
        if context.prefix is not None:
            keys, values = context.prefix.layers[self.layer]
            keys = keys if rotary is None else self._in_halves(keys)
            key, value = context.prefix.insert(key, keys), context.prefix.insert(value, values)
        return (key, value) if context.cache is None else context.cache.append(self.layer, key, value)

    def _project(self, heads: Tensor, x: Tensor) -> Tensor:
        """The output projection of all heads (B, T, H D), which x gates if the family does so."""
        return self.o_proj(heads if self.gate_proj is None else heads * self.gate_proj(x).sigmoid())

    def _heads(self, x: Tensor, heads: int, norm: nn.Module | None = None) -> Tensor:
        """Splits a projection (B, T, H D) into heads (B, T, H, D), normalized if the family does so."""
        if norm is not None and self.norms_whole:
            x, norm = norm(x), None
        x = x.view(*x.shape[:2], heads, self.head_dim)
        return x if norm is None else norm(x)

    def _with_distances(
        self, mask: AttentionMask, query: Tensor, key: Tensor, embedded: Tensor, rows: Tensor
    ) -> AttentionMask:
        """The mask with a bias of the scores (B, H, T, S) by content and distance, for queries and keys (B, T, H, D).

        The distances (N, hidden_size) pass through the projections of queries and keys (DeBERTa v2's shared keys).
        """
        keys = self._heads(self.k_proj(embedded)[None], self.num_kv_heads)[0]
        queries = self._heads(self.q_proj(embedded)[None], self.num_heads)[0]
        if (shared := self.num_heads // self.num_kv_heads) > 1:
            key, keys = key.repeat_interleave(shared, -2), keys.repeat_interleave(shared, -2)
        rows = rows.expand(query.shape[0], self.num_heads, -1, -1)
        to_distance = torch.einsum("bthd,nhd->bhtn", query, keys).gather(-1, rows)
        of_distance = torch.einsum("bshd,nhd->bhsn", key, queries).gather(-1, rows.mT).mT
        bias = (to_distance + of_distance) * self.scale
        return replace(mask, bias=bias if mask.bias is None else bias + mask.bias, _additive=None)

    def _in_halves(self, x: Tensor) -> Tensor:
        """Queries or keys (…, D) with their rotated channels in the order that `rotate` expects."""
        return x if self.rotary_layout == "halves" else to_halves(x, self.rotary_dim, self.rotary_layout)

    def _cross_attention(self, query: Tensor, context: ForwardContext) -> Tensor:
        """Attention over the encoder's output, whose keys and values a cache stores from the first step on."""
        mask, stored = context.masks["cross"], None
        if context.cache is not None:
            stored = context.cache.cross_attention(self.layer)
        if stored is None:
            key, value = self._keys_values(cast(Tensor, context.encoded))
            if mask.use_cpu_kernel:
                return self._cpu_kernel(query, key, value, mask, None)
            stored = key.transpose(1, 2), value.transpose(1, 2)
            if context.cache is not None:
                stored = context.cache.store_cross_attention(self.layer, *stored)
        recorded = None if context.trace is None else context.trace.cross_attentions
        return self._attend(query.transpose(1, 2), *stored, mask, recorded)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, recorded: list[Tensor] | None
    ) -> Tensor:
        """Attention of queries (B, H, T, D) over keys and values (B, G, S, D); gives (B, T, H D)."""
        if recorded is None and self.sinks is None and flex.supports(query, self.softcap, self.window, key.shape[2]):
            output = flex.attention(
                query,
                key,
                value,
                scale=self.scale,
                softcap=self.softcap,
                bias=mask.bias,
                mask=mask.mask,
                causal=mask.causal,
            )
        elif recorded is not None or self.softcap is not None or self.sinks is not None:
            output = self._explicit(query, self._repeat_kv(key, 1), self._repeat_kv(value, 1), mask, recorded)
        else:
            output = F.scaled_dot_product_attention(
                query,
                self._repeat_kv(key, 1),
                self._repeat_kv(value, 1),
                attn_mask=mask.for_sdpa(),
                is_causal=mask.is_plain_causal,
                scale=self.scale,
            )
        return output.transpose(1, 2).flatten(2)

    def _explicit(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, recorded: list[Tensor] | None
    ) -> Tensor:
        """Attention that materializes its weights (B, H, T, S), which can be recorded.

        Sinks are logits of a slot without a value, which takes a part of the attention (GPT-OSS).
        """
        scores = query @ key.mT * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        added = mask.additive(query.shape[2], key.shape[2], query)
        scores = scores if added is None else scores + added
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
        weights = weights if self.sinks is None else weights[..., :-1]
        if recorded is not None:
            recorded.append(weights)
        return weights @ value

    def _cpu_kernel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The hand-written CPU kernel over (B, T, H, D); gives (B, T, H D)."""
        cos, sin = None, None
        if rotary is not None:
            cos, sin = (table[..., : table.shape[-1] // 2].unsqueeze(-2) for table in rotary)
        plain = mask.is_plain_causal and query.shape[1] == key.shape[1]
        added = None if plain else mask.additive(query.shape[1], key.shape[1], query)
        if added is not None and (added.shape[1] > 1 or added.requires_grad):  # It differs between query heads.
            key, value = self._repeat_kv(key, 2), self._repeat_kv(value, 2)
        return cpu.AttentionFunction.apply(query, key, value, cos, sin, added, self.scale, self.softcap, mask.causal)

    def _repeat_kv(self, x: Tensor, axis: int) -> Tensor:
        """Repeats each key/value head for the query heads that share it."""
        if self.num_kv_heads == self.num_heads:
            return x
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=axis)
