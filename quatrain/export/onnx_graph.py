"""The stack as functions of plain tensors, which ONNX can express: masks and caches are inputs and outputs.

The blocks of the model itself are traced; only what surrounds them (positions, masks, rotary tables, the cache) is
computed here without the checks and shortcuts of `Model.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.models.transformer import heads
from quatrain.models.transformer.blocks import Stack
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.context import AttentionMask, ForwardContext
from quatrain.models.transformer.positions import (
    alibi_slopes,
    inverse_frequency,
    query_scale,
    relative_buckets,
    sinusoidal_table,
)
from quatrain.models.transformer.stack import Model

MASKED = -1e9
"""What is added to the scores of masked keys: a row without any key gives a mean instead of NaN."""


class TensorCache:
    """The keys and values of the tokens before, for each layer (B, G, P, D), and those after the new tokens."""

    def __init__(self, past: Sequence[tuple[Tensor, Tensor]]):
        self.past = past
        self.present: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with those of the past in front."""
        before_key, before_value = self.past[layer]
        whole = torch.cat([before_key, key], dim=2), torch.cat([before_value, value], dim=2)
        self.present.append(whole)
        return whole

    def cross_attention(self, layer: int) -> None:
        """Cross-attention is not cached: its keys and values are computed from the encoder's output in every step."""

    def store_cross_attention(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is stored; this pass reads them as they are."""
        return key, value


def run_stack(
    stack: Stack,
    embedded: Tensor,
    mask: Tensor,
    *,
    token_types: Tensor | None = None,
    cache: TensorCache | None = None,
    encoded: Tensor | None = None,
    encoder_mask: Tensor | None = None,
) -> Tensor:
    """The last hidden states (B, T, C) of embedded tokens (B, T, E); mask (B, P + T) is 1 for tokens, 0 for padding."""
    config = stack.config
    length = embedded.shape[1]
    before = cache.past[0][0].shape[2] if cache is not None else 0
    slots = torch.arange(before + length)
    places = torch.arange(length) + before
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    positions = counted.gather(1, places[None].expand(embedded.shape[0], -1))
    x = _embedded(stack, embedded, positions, token_types)
    distance = slots[None, :] - places[:, None]
    bias = _bias(stack, distance)
    masks: dict[str, AttentionMask] = {}
    for kind in sorted(set(config.layer_types)):
        allowed = (mask[:, None, :] > 0).expand(-1, length, -1)
        if config.is_causal:
            allowed = allowed & (distance <= 0)[None]
        if kind == "sliding":
            allowed = allowed & _in_window(config, distance)[None]
        scores = torch.where(allowed, 0.0, MASKED)[:, None]
        masks[kind] = AttentionMask(bias=scores if bias is None else scores + bias)
    if encoder_mask is not None:
        seen = (encoder_mask[:, None, None, :] > 0).expand(-1, -1, length, -1)
        masks["cross"] = AttentionMask(bias=torch.where(seen, 0.0, MASKED))
    context: Any = ForwardContext(masks, _rotary(config, positions), cache, None, encoded, None)  # type: ignore[arg-type]
    context.query_scale = query_scale(config, positions, 0, x)
    if stack.distances is not None:
        context.distances = stack.distances.norm(stack.distances.embedding.weight), stack.distances.rows(-distance)
    start = x
    for number, layer in enumerate(stack.passes()):
        x = layer(x, context)
        if number == 0 and stack.neighbours is not None:
            x = stack.neighbours(start, x, mask)
    x = x if stack.norm is None else stack.norm(x)
    return x if stack.project_out is None else stack.project_out(x)


def _embedded(stack: Stack, x: Tensor, positions: Tensor, token_types: Tensor | None) -> Tensor:
    config = stack.config
    x = x if config.embedding_scale == 1.0 else x * config.embedding_scale
    whole = config.embedding_projection == "all"
    x = x if stack.project_in is None or whole else stack.project_in(x)
    if stack.embed_positions is not None:
        x = x + stack.embed_positions(positions + config.position_offset)
    elif config.position == "sinusoidal":
        x = x + sinusoidal_table(config.max_position_embeddings, config.hidden_size)[positions]
    if stack.embed_token_types is not None:
        table: Any = stack.embed_token_types
        x = x + (table.weight[0] if token_types is None else table(token_types))
    x = x if stack.embedding_norm is None else stack.embedding_norm(x)
    return stack.project_in(x) if whole and stack.project_in is not None else x


def _in_window(config: ModelConfig, distance: Tensor) -> Tensor:
    window = config.sliding_window or 0
    return distance > -window if config.is_causal else distance.abs() <= window // 2


def _bias(stack: Stack, distance: Tensor) -> Tensor | None:
    """The bias of the scores by distance (1, H, T, S)."""
    config = stack.config
    if config.position == "alibi":
        slopes = alibi_slopes(config.num_attention_heads) * config.alibi_scale
        return (slopes[:, None, None] * -distance.abs())[None].float()
    if stack.relative_bias is None:
        return None
    buckets = relative_buckets(distance, config.relative_buckets, config.relative_max_distance, config.is_causal)
    bias: Tensor = stack.relative_bias(buckets)
    return bias.movedim(-1, -3)[None]


def _rotary(config: ModelConfig, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines (B, T, R) by type of layer."""
    if config.position != "rotary":
        return {}
    found = {}
    for kind in sorted(set(config.layer_types)):
        theta, scaling = config.rope_theta, config.rope_scaling
        if kind == "sliding" and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, config.local_rope_scaling
        width, longest = config.rotary_dim or config.head_dim, config.max_position_embeddings
        frequency, factor = inverse_frequency(width, theta, scaling, 0, longest)
        angles = positions[..., None].float() * frequency
        angles = torch.cat((angles, angles), dim=-1)
        found[kind] = angles.cos() * factor, angles.sin() * factor
    return found


def _logits(model: Model, hidden: Tensor) -> Tensor:
    hidden = hidden if model.transform is None else model.transform(hidden)
    if model.lm_head is None:
        return hidden
    logits: Tensor = model.lm_head(hidden * model.config.logit_scale)
    fixed: Any = model.logits_bias
    logits = logits if fixed is None else logits + fixed
    cap = model.config.logit_softcap
    return logits if cap is None else torch.tanh(logits / cap) * cap


class DecoderGraph(nn.Module):
    """input_ids (B, T), attention_mask (B, P + T) and the past to logits (B, T, V) and the present."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Past and present are keys and values of the layers in turn, (B, G, P, D) and (B, G, P + T, D)."""
        cache = TensorCache(list(zip(past[::2], past[1::2], strict=True)))
        hidden = run_stack(self.model, self.model.embed_tokens(input_ids), attention_mask, cache=cache)
        return _logits(self.model, hidden), [tensor for pair in cache.present for tensor in pair]


class EncoderGraph(nn.Module):
    """input_ids (B, T), attention_mask (B, T) and, in some models, token_type_ids to what the head computes."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits, pooled vectors or hidden states, as the head says."""
        model = self.model
        embedded = model.embed_tokens(input_ids)
        hidden = run_stack(model, embedded, attention_mask, token_types=token_type_ids)
        head = model.config.head
        if head in LANGUAGE_HEADS:
            return _logits(model, hidden)
        if head == "none":
            return hidden
        if head in ("token_classification", "question_answering"):
            states = hidden if model.pooler is None else model.pooler(hidden)
            return states if model.score is None else model.score(states)
        pooled = heads.pool(hidden, model.config, input_ids, attention_mask)
        if head == "embedding":
            pooled = heads.through_layers(pooled, model.embedding_layers, model.config)
            return nn.functional.normalize(pooled, dim=-1) if model.config.normalize_embedding else pooled
        pooled = pooled if model.pooler is None else model.pooler(pooled)
        return pooled if model.score is None else model.score(pooled)


class SideGraph(nn.Module):
    """The encoder of an encoder-decoder: input_ids (B, S) and attention_mask (B, S) to hidden states (B, S, C)."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's last hidden states."""
        encoder: Any = self.model.encoder
        return run_stack(encoder, self.model.embed_source(input_ids), attention_mask)


class CrossDecoderGraph(nn.Module):
    """The decoder of an encoder-decoder: new tokens, their mask, the encoder's output and the past to logits."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, T, V), and the present of self-attention as in `DecoderGraph`."""
        cache = TensorCache(list(zip(past[::2], past[1::2], strict=True)))
        hidden = run_stack(
            self.model, self.model.embed_tokens(input_ids), attention_mask, cache=cache,
            encoded=encoder_hidden_states, encoder_mask=encoder_attention_mask,
        )  # fmt: skip
        return _logits(self.model, hidden), [tensor for pair in cache.present for tensor in pair]
