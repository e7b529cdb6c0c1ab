"""Per-forward state shared by all layers: masks, rotary tables, KV cache, recorded activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import KVCache


@dataclass
class Trace:
    """Records the activations of a forward pass that is given it as `trace=`.

    hidden_states: the embedding's output, then each layer's, the last one after the final norm: (B, T, hidden_size).
    attentions: each layer's attention weights (B, H, T, S). For an encoder-decoder, the `encoder_` lists are the
    encoder's, and `cross_attentions` the decoder's weights over the encoder's output.
    """

    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    cross_attentions: list[Tensor] = field(default_factory=list)
    encoder_hidden_states: list[Tensor] = field(default_factory=list)
    encoder_attentions: list[Tensor] = field(default_factory=list)

    def encoder(self) -> Trace:
        """The trace of the encoder: its lists are the `encoder_` lists of this one."""
        return Trace(hidden_states=self.encoder_hidden_states, attentions=self.encoder_attentions)


@dataclass
class Prefix:
    """Keys and values of a prefix, which replace those that a layer computes for its positions; positions included.

    layers: for each layer keys and values (num_key_value_heads, S, head_dim), or one of each per row (B, …). places
    (B, S): the prefix's places in each row; None: the first ones. holds (B, S): which of them are replaced; None: all.
    """

    layers: list[tuple[Tensor, Tensor]]
    places: Tensor | None = None
    holds: Tensor | None = None

    def insert(self, own: Tensor, learned: Tensor) -> Tensor:
        """Keys or values (B, H, T, D) with those of the prefix in their places."""
        learned = learned.to(own.dtype).expand(own.shape[0], -1, -1, -1)
        if self.places is None and self.holds is None:
            return torch.cat((learned, own[:, :, learned.shape[2] :]), dim=2)
        places = self.places
        if places is None:
            places = torch.arange(learned.shape[2], device=own.device).expand(own.shape[0], -1)
        places = places[:, None, :, None].expand_as(learned)
        if self.holds is not None:
            learned = torch.where(self.holds[:, None, :, None], learned, own.gather(2, places))
        return own.scatter(2, places, learned)


@dataclass
class AttentionMask:
    """Which keys a query may attend to in one type of layer, and the bias added to its scores.

    mask (B or 1, T, S): True where a query attends to a key; None: everywhere, or for `causal` to no later key. bias
    (1, H, T, S): positional bias of the scores (ALiBi, relative), or None. without_keys (B, T or 1): queries that have
    no key, whose attention is 0; None: there are none. use_cpu_kernel: whether the hand-written CPU kernel runs.
    """

    mask: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    without_keys: Tensor | None = None
    use_cpu_kernel: bool = False
    _additive: Tensor | None = None

    @property
    def is_plain_causal(self) -> bool:
        """Whether the mask is exactly causal, which PyTorch's attention handles itself."""
        return self.causal and self.mask is None and self.bias is None

    def for_sdpa(self) -> Tensor | None:
        """The mask (B or 1, 1, T, S), or the bias with the mask applied; None if there is nothing to add."""
        if self.bias is None:
            return None if self.mask is None else self.mask[:, None]
        return self.additive(self.bias.shape[-2], self.bias.shape[-1], self.bias)

    def additive(self, queries: int, keys: int, like: Tensor) -> Tensor | None:
        """Mask and bias as a term (B or 1, H or 1, queries, keys) of the scores, -inf at masked keys; None for none."""
        if self._additive is None or self._additive.dtype != like.dtype:
            mask = self.mask
            if mask is None and self.causal:
                mask = torch.ones(1, queries, keys, dtype=torch.bool, device=like.device).tril_(keys - queries)
            if mask is None:
                return None if self.bias is None else self.bias.to(like.dtype)
            if self.bias is not None:
                self._additive = self.bias.to(like.dtype).masked_fill(~mask[:, None], float("-inf"))
            else:
                zeros = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
                self._additive = zeros.masked_fill_(~mask, float("-inf"))[:, None]
        return self._additive


@dataclass
class ForwardContext:
    """Per-forward state shared by all layers.

    masks: by type of layer ("full", "sliding"), and "cross" for cross-attention. rotary: by type of layer, cosines and
    sines (T, R) or (B, T, R). encoded (B, S, hidden_size): the encoder's output, None once a cache has its keys and
    values. prefix: keys and values of a soft prompt.
    """

    masks: dict[str, AttentionMask]
    rotary: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    cache: KVCache | None = None
    trace: Trace | None = None
    encoded: Tensor | None = None
    prefix: Prefix | None = None


def self_attention_mask(
    config: ModelConfig,
    kind: str,
    segments: Tensor | None,
    queries: int,
    keys: int,
    first_key: int,
    device: torch.device,
) -> Tensor | None:
    """Which of the last `keys` slots each of the last `queries` slots sees: (B or 1, queries, keys), or None.

    None means all keys where the architecture looks both ways or one query looks back, and all but the later ones where
    it is causal. `segments` (B, all slots): a token sees its own segment only; padding (0) sees padding, so that no row
    is empty. `first_key` is the slot of the first key.
    """
    total = first_key + keys
    window = config.sliding_window if kind == "sliding" else None
    reach = None if window is None else (window if config.is_causal else window // 2 + 1)
    bounded = reach is not None and total > reach and not (config.is_causal and queries == 1 and keys <= reach)
    if segments is None and not bounded and (not config.is_causal or queries == 1 or queries == total):
        return None
    slots = torch.arange(total, device=device)
    distance = slots[first_key:][None, :] - slots[total - queries :, None]
    seen = distance <= 0 if config.is_causal else torch.ones_like(distance, dtype=torch.bool)
    if bounded and reach is not None:
        seen = seen & (distance.abs() < reach)
    if segments is None:
        return seen[None]
    own, theirs = segments[:, total - queries : total, None], segments[:, None, first_key:total]
    return (own == theirs) & seen


def cross_attention_mask(
    segments: Tensor | None, encoder_segments: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which encoded tokens each decoder token sees: (B, T or 1, S), or None for all; and which see none: (B, T or 1).

    With segments on both sides, those of its own; a decoder's padding, or a decoder without segments, sees all text.
    The row of a token that sees none is open, so that its weights are numbers, and what they give is to be dropped.
    """
    if encoder_segments is None:
        return None, None
    text = (encoder_segments != 0)[:, None, :]
    seen = text
    if segments is not None:
        own = segments[:, :, None] == encoder_segments[:, None, :]
        seen = torch.where((segments == 0)[:, :, None], text, own & text)
    without_keys = ~seen.any(-1)
    if seen.device.type == "cpu" and not bool(without_keys.any()):  # elsewhere looking would mean waiting
        return seen, None
    return seen | without_keys[..., None], without_keys
