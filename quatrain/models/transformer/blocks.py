"""Transformer blocks (attention and feed-forward), and the stack of blocks between embedding and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.kernels import cpu
from quatrain.models.transformer.attention import Attention
from quatrain.models.transformer.config import ATTENTION_LAYERS, ModelConfig
from quatrain.models.transformer.context import (
    AttentionMask,
    ForwardContext,
    Prefix,
    Routing,
    Trace,
    branch_mask,
    cross_attention_mask,
    self_attention_mask,
    self_attention_mask_at,
)
from quatrain.models.transformer.delta_net import GatedDeltaNet
from quatrain.models.transformer.experts import make_feed_forward
from quatrain.models.transformer.feed_forward import ACTIVATIONS
from quatrain.models.transformer.kv_cache import CacheRows
from quatrain.models.transformer.latent_attention import LatentAttention
from quatrain.models.transformer.layer_embedding import LayerEmbedding, LayerInput
from quatrain.models.transformer.mamba import Mamba2
from quatrain.models.transformer.mlstm import MLSTM
from quatrain.models.transformer.norms import make_norm
from quatrain.models.transformer.positions import (
    alibi_slopes,
    log_buckets,
    make_rotary,
    positions_in_segments,
    query_scale,
    relative_buckets,
    sinusoidal_table,
)
from quatrain.models.transformer.recurrence import Recurrence, make_recurrence

RECURRENT: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "mamba2": Mamba2,
    "mlstm": MLSTM,
    "gated_delta": GatedDeltaNet,
}
"""The mixers beside attention, by type of layer."""


class Block(nn.Module):
    """A token mixer (self-attention or a recurrent layer), cross-attention in a decoder that has an encoder, and
    feed-forward, with residuals and norms.

    `norm_position` places the norm of each sublayer before it (pre), after the residual (post), before and after it
    (sandwich), or after it alone (output).
    """

    is_block = True
    """Marks the unit of activation checkpointing and torch.compile."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm_position, self.residual, self.dropout = config.norm_position, config.residual, config.dropout
        self.residual_scale = config.residual_scale
        before, after = config.norm_position != "output", config.norm_position in ("sandwich", "output")
        self.input_layernorm: nn.Module | None = None
        if before:
            self.input_layernorm = make_norm(config) if config.first_norm or layer else nn.Identity()
        self.kind = config.layer_types[layer]
        attention = Attention if config.latent is None else LatentAttention
        self.self_attn = attention(config, layer) if self.kind in ATTENTION_LAYERS else None
        self.mixer: Any = None if self.self_attn is not None else RECURRENT[self.kind](config, layer)
        has_encoder = config.architecture == "encoder-decoder" or config.cross_attention
        self.cross_attn_layernorm = make_norm(config) if has_encoder else None
        self.cross_attn = Attention(config, layer, cross=True) if has_encoder else None
        has_feed_forward = config.feed_forward != "none"
        second_norm = before and has_feed_forward and config.residual != "parallel_shared"
        self.post_attention_layernorm = make_norm(config) if second_norm else None
        self.mlp = make_feed_forward(config, layer) if has_feed_forward else None
        self.attention_output_layernorm = make_norm(config) if after else None
        self.feed_forward_output_layernorm = make_norm(config) if after and has_feed_forward else None
        if self.mlp is not None and self.mlp.has_norms:
            self.post_attention_layernorm = None
        self.layer = layer
        self.layer_input = LayerInput(config) if config.layer_embedding_size else None
        self.register_buffer("layer_scalar", torch.ones(1) if config.layer_scale else None)

    def prepare_recomputation(self, x: Tensor, context: ForwardContext) -> None:
        """Computes the attention biases that all blocks share before the first block, which may be recomputed, runs."""
        for mask in context.masks.values():
            if mask.bias is not None:
                mask.additive(mask.bias.shape[-2], mask.bias.shape[-1], x)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        mixer = self.mixer if self.self_attn is None else self.self_attn
        if self.residual != "sequential" and self.mlp is not None and self.input_layernorm is not None:
            normed = self.input_layernorm(x)
            other = normed if self.post_attention_layernorm is None else self.post_attention_layernorm(x)
            return x + self._scaled(mixer(normed, context)) + self._scaled(self.mlp(other, context))
        x = self._add(x, lambda h: mixer(h, context), self.input_layernorm, self.attention_output_layernorm)
        if self.cross_attn is not None and self.cross_attn_layernorm is not None and "cross" in context.masks:
            cross = self.cross_attn
            x = self._add(x, lambda h: cross(h, context), self.cross_attn_layernorm)
        if self.mlp is None:
            return x
        mlp = self.mlp
        x = self._add(x, lambda h: mlp(h, context), self.post_attention_layernorm, self.feed_forward_output_layernorm)
        if self.layer_input is not None and context.layer_inputs is not None:
            x = x + self.layer_input(x, context.layer_inputs[:, :, self.layer])
        return x * self.layer_scalar.to(x.dtype) if isinstance(self.layer_scalar, Tensor) else x

    def _add(
        self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module | None, after: nn.Module | None = None
    ) -> Tensor:
        if norm is not None and self.norm_position == "post":
            return norm(x + self._scaled(sublayer(x)))
        out = sublayer(x if norm is None else norm(x))
        return x + self._scaled(out if after is None else after(out))

    def _scaled(self, x: Tensor) -> Tensor:
        x = self._drop(x)
        return x if self.residual_scale == 1.0 else x * self.residual_scale

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class RunInputs(TypedDict, total=False):
    """Inputs of `Stack.run` that few callers give, as in `Model.hidden_states`."""

    branches: Tensor | None
    routing: list[Routing] | None
    token_ids: Tensor | None
    depth: int | None
    """So many layers run, and the final norm does not; None: all of them, and it does."""


class Distances(nn.Module):
    """The table of embedded distances that DeBERTa's attention compares with contents, normalized."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(2 * config.relative_buckets, config.hidden_size)
        self.norm = make_norm(config)
        self.buckets, self.longest = config.relative_buckets, config.relative_max_distance

    def at(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The embedded distances in a text (N, hidden_size), and the row of each query and key (T, T)."""
        slots = torch.arange(length, device=device)
        rows = self.rows(slots[:, None] - slots)
        first, last = int(rows[0, -1]), int(rows[-1, 0])  # The most distant keys; a short text needs few rows.
        return self.norm(self.embedding.weight[first : last + 1]), rows - first

    def rows(self, distances: Tensor) -> Tensor:
        """The row of the table of each distance (query - key position)."""
        return (log_buckets(distances, self.buckets, self.longest) + self.buckets).clamp(0, 2 * self.buckets - 1)


class Neighbours(nn.Module):
    """norm(x + act(convolution over the embeddings)), for the output x of the first layer (DeBERTa v2 XL)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, config.neighbour_tokens)
        self.norm = make_norm(config)
        self.activation = ACTIVATIONS[config.neighbour_activation]

    def forward(self, embedded: Tensor, x: Tensor, segments: Tensor | None) -> Tensor:
        """embedded, x (B, T, C) to the same shape. A token sees no neighbour of another segment (B, T)."""
        length, reach = embedded.shape[1], self.conv.kernel_size[0] // 2
        near = F.pad(embedded, (0, 0, reach, reach))
        around = None if segments is None else F.pad(segments, (reach, reach), value=-1)
        output = torch.zeros_like(x) if self.conv.bias is None else self.conv.bias.expand_as(x)
        for tap, weight in enumerate(self.conv.weight.unbind(2)):
            seen = near[:, tap : tap + length]
            if around is not None and segments is not None:
                seen = seen * around[:, tap : tap + length].eq(segments)[..., None]
            output = output + F.linear(seen, weight)
        normed: Tensor = self.norm(x + self.activation(output))
        return normed


class Stack(nn.Module):
    """Positions, blocks and final norm: embedded tokens (B, T, embedding_size) to hidden states."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        hidden, width = config.hidden_size, config.embedding_size or config.hidden_size
        rows, whole = config.max_position_embeddings + config.position_offset, config.embedding_projection == "all"
        inner = width if whole else hidden
        learned, biased = ("learned", "learned_relative"), ("relative", "learned_relative")
        self.embed_positions = nn.Embedding(rows, inner) if config.position in learned else None
        self.embed_token_types = nn.Embedding(config.type_vocab_size, inner) if config.type_vocab_size else None
        # Of an encoder-decoder the encoder's stack reads what is not a token.
        reads = config.frontend is not None and config.architecture != "encoder-decoder"
        self.frontend: Any = config.frontend.build(config) if reads and config.frontend else None
        self.project_in = nn.Linear(width, hidden, bias=whole) if whole or width != hidden else None
        self.embedding_norm = make_norm(config, inner) if config.embedding_norm else None
        self.relative_bias = (
            nn.Embedding(config.relative_buckets, config.num_attention_heads) if config.position in biased else None
        )
        self.distances = Distances(config) if config.position == "disentangled" else None
        self.neighbours = Neighbours(config) if config.neighbour_tokens else None
        self.layer_embedding = LayerEmbedding(config) if config.layer_embedding_size else None
        self.layers = nn.ModuleList(
            Block(config, config.blocks.index(block) if config.blocks else block) for block in range(config.num_blocks)
        )
        self.norm = make_norm(config) if config.final_norm and config.norm_position != "post" else None
        self.project_out = nn.Linear(hidden, width, bias=False) if width != hidden and not whole else None
        self._rotary = make_rotary(config)
        self._table: Tensor | None = None
        self._attention_types = sorted(set(config.layer_types).intersection(ATTENTION_LAYERS))

    def run(
        self,
        embedded: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        token_types: Tensor | None = None,
        cache: CacheRows | None = None,
        trace: Trace | None = None,
        encoded: Tensor | None = None,
        encoder_segments: Tensor | None = None,
        prefix: Prefix | None = None,
        **more: Unpack[RunInputs],
    ) -> Tensor:
        """The last hidden states (B, T, hidden_size) of embedded tokens; arguments as in `Model.forward`.

        `prefix` holds keys and values that replace those that the layers compute.
        """
        branches, routing = more.get("branches"), more.get("routing")
        length, past, text_length = embedded.shape[1], 0, None
        if cache is not None:
            self._check_length(positions, max(cache.token_counts(length)) - length, length)
            cache.begin(length, segments)
            positions, past, text_length = self._continued(cache, positions), cache.past or 0, cache.text_length
        else:
            self._check_length(positions, 0, length)
        slots = segments if cache is None else cache.segments
        if positions is None and slots is not None:
            positions = positions_in_segments(slots)[:, past:]
        x = self._embed(embedded, positions, past, token_types)
        rotary = {
            kind: self._rotary[kind].at(positions, past, length, x, slots, text_length)
            for kind in self._attention_types
            if self._rotary
        }
        masks = self._masks(slots, past, x, cache, trace)
        if branches is not None:
            self._check_branches(positions)
            masks["full"] = replace(masks["full"], mask=branch_mask(branches))
        if self.config.architecture == "encoder-decoder" or encoded is not None or (cache and cache.has_encoded):
            mask, without_keys = cross_attention_mask(segments, encoder_segments)
            use_cpu_kernel = self._use_cpu_kernel(x, self._encoder_length(encoded, cache), cache, trace, causal=False)
            masks["cross"] = AttentionMask(mask, without_keys=without_keys, use_cpu_kernel=use_cpu_kernel)
        text = None
        if self.config.experts is not None and segments is not None:
            text = segments != 0
        recurrence = Recurrence()
        if self.config.recurs:
            padding = None if cache is None else cache.padding
            recurrence = make_recurrence(slots, past, length, padding, x.device)
        context = ForwardContext(masks, rotary, cache, trace, encoded, prefix, recurrence, text, routing)
        context.query_scale = query_scale(self.config, positions, past, x)
        if prefix is not None and self.config.blocks:
            raise InputError(f"The layers of a {self.config.family} model share weights: they have no prefix each.")
        if self.layer_embedding is not None:
            if (ids := more.get("token_ids")) is None or ids.shape != x.shape[:2]:
                raise InputError(f"A {self.config.family} model embeds tokens for every layer: it needs their ids.")
            context.layer_inputs = self.layer_embedding(ids, x)
        if self.distances is not None:
            context.distances = self.distances.at(length, x.device)
        depth = more.get("depth")
        embedded = x
        for number, layer in enumerate(islice(self.passes(), depth)):
            if trace is not None:
                trace.hidden_states.append(x)
            x = layer(x, context)
            if number == 0 and self.neighbours is not None:
                x = self.neighbours(embedded, x, segments)
        if cache is not None:
            cache.advance()
        x = x if self.norm is None or depth is not None else self.norm(x)
        x = x if self.project_out is None else self.project_out(x)
        if trace is not None:
            trace.hidden_states.append(x)
        return x

    def vectors_of(self, features: Tensor) -> Tensor:
        """The vectors (B, T, embedding_size) of features (B, …). Raises InputError for a model of tokens alone."""
        if self.frontend is None:
            raise InputError(f"features: a {self.config.family} model reads tokens alone; leave them out.")
        vectors: Tensor = self.frontend(features)
        return vectors

    def passes(self) -> Iterator[nn.Module]:
        """The block of each layer in turn; a shared block several times."""
        return (self.layers[block] for block in self.config.blocks or range(len(self.layers)))

    def _continued(self, cache: CacheRows, positions: Tensor | None) -> Tensor | None:
        """The positions of new tokens, from the lengths of their rows if these differ and no positions are given."""
        if positions is not None or cache.positions is None:
            return positions
        # A column that holds no token may be past the model's last position.
        return (
            cache.positions.clamp(max=self.config.context_length - 1)
            if self.config.has_position_limit
            else cache.positions
        )

    def _embed(self, x: Tensor, positions: Tensor | None, past: int, token_types: Tensor | None) -> Tensor:
        """Scales and projects the embeddings, adds positions and token types, applies norm and dropout."""
        config, length = self.config, x.shape[1]
        if config.embedding_scale != 1.0:
            x = x * torch.tensor(config.embedding_scale, dtype=x.dtype).item()
        whole = config.embedding_projection == "all"
        x = x if self.project_in is None or whole else self.project_in(x)
        if config.position in ("learned", "learned_relative", "sinusoidal"):
            if positions is None:
                positions = torch.arange(past, past + length, device=x.device)
            x = x + self._position_rows(positions, x)
        if token_types is not None:
            self._check_types(token_types, x)
        if self.embed_token_types is not None:
            types = self.embed_token_types.weight[0] if token_types is None else self.embed_token_types(token_types)
            x = x + types
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        x = F.dropout(x, config.dropout, self.training) if config.dropout else x
        return self.project_in(x) if whole and self.project_in is not None else x

    def _check_types(self, token_types: Tensor, x: Tensor) -> None:
        """Raises InputError for token types of another shape or outside the model's table."""
        rows = self.config.type_vocab_size
        if token_types.shape != x.shape[:2]:
            raise InputError(f"token_types: have shape {tuple(token_types.shape)}; must be {tuple(x.shape[:2])}.")
        if token_types.device.type == "cpu" and token_types.numel():
            low, high = (int(end) for end in torch.aminmax(token_types))
            if low < 0 or high >= max(rows, 1):
                known = f"0 to {rows - 1}" if rows else "0: this model has no token types"
                raise InputError(f"token_types: {high if low >= 0 else low}; must be {known}.")

    def _position_rows(self, positions: Tensor, x: Tensor) -> Tensor:
        if self.embed_positions is not None:
            return self.embed_positions(positions + self.config.position_offset)
        if self._table is None or self._table.device != x.device or self._table.dtype != x.dtype:
            with torch.inference_mode(False):
                table = sinusoidal_table(self.config.max_position_embeddings, self.config.hidden_size, x.device)
                self._table = table.to(x.dtype)
        return self._table[positions]

    def _check_length(self, positions: Tensor | None, past: int, length: int) -> None:
        """Raises InputError for a text longer than the model's context, or positions outside it."""
        limit = self.config.context_length
        if not self.config.has_position_limit:
            return
        if positions is not None:
            if positions.device.type == "cpu" and positions.numel():
                low, high = (int(end) for end in torch.aminmax(positions))
                if low < -self.config.position_offset or high >= limit:
                    raise InputError(f"positions: {low if high < limit else high}; must be 0 to {limit - 1}.")
            return
        if past + length <= limit:
            return
        raise InputError(
            f"This text has {past + length} tokens ({past} cached, {length} new); the model reads at most {limit}. "
            "Shorten or truncate the text, or use a model with a longer context."
        )

    def _check_branches(self, positions: Tensor | None) -> None:
        """Raises InputError if texts that share their beginning would not have the attention of texts of their own."""
        if not self.config.supports_branches or positions is None:
            raise InputError(
                f"branches: a {self.config.family} model with {self.config.position} positions cannot read texts that "
                "share their beginning, or no positions are given; give each text its own row."
            )

    def _masks(
        self, slots: Tensor | None, past: int, x: Tensor, cache: CacheRows | None, trace: Trace | None
    ) -> dict[str, AttentionMask]:
        """The attention mask of each type of layer."""
        length, masks = x.shape[1], {}
        use_cpu_kernel = self._use_cpu_kernel(x, length, cache, trace, causal=self.config.is_causal)
        for kind in self._attention_types:
            keys = length if cache is None else cache.num_keys(kind)
            if cache is not None and cache.positions is not None:
                distance = cache.distances(kind, cache.positions)
                mask: Tensor | None = self_attention_mask_at(self.config, kind, distance)
            else:
                distance = (
                    torch.arange(keys, device=x.device) - torch.arange(keys - length, keys, device=x.device)[:, None]
                )
                mask = self_attention_mask(self.config, kind, slots, length, keys, past + length - keys, x.device)
            bias = self._position_bias(distance, x)
            masks[kind] = AttentionMask(mask, self.config.is_causal and length > 1, bias, use_cpu_kernel=use_cpu_kernel)
        return masks

    def _position_bias(self, distance: Tensor, x: Tensor) -> Tensor | None:
        """ALiBi's or T5's bias of the attention scores (B or 1, H, T, S); None for other positions.

        `distance` (T, S) or (B, T, S) is the distance of each key from its query; negative: before it.
        """
        config = self.config
        if config.position == "alibi":
            slopes = alibi_slopes(config.num_attention_heads, x.device) * config.alibi_scale
            bias = slopes[:, None, None] * -distance.abs().unsqueeze(-3)
            return (bias if bias.dim() == 4 else bias[None]).to(x.dtype)
        if self.relative_bias is None:
            return None
        buckets = relative_buckets(distance, config.relative_buckets, config.relative_max_distance, config.is_causal)
        bias = self.relative_bias(buckets).movedim(-1, -3)
        return bias if bias.dim() == 4 else bias[None]

    def _use_cpu_kernel(
        self, x: Tensor, keys: int, cache: CacheRows | None, trace: Trace | None, *, causal: bool
    ) -> bool:
        """Whether the hand-written CPU attention is used: in training, if its scores fit in memory."""
        if cache is not None or trace is not None:
            return False
        if self.config.attention_sinks:
            return False
        no_fast_path = (
            self.relative_bias is not None or self.distances is not None or self.config.attention_softcap is not None
        )
        return cpu.supports_attention(
            x, self.config.num_attention_heads, keys, no_fast_path=no_fast_path, causal=causal
        )

    @staticmethod
    def _encoder_length(encoded: Tensor | None, cache: CacheRows | None) -> int:
        if encoded is not None:
            return encoded.shape[1]
        return 0 if cache is None else cache.encoded_width
