"""Per-forward state shared by all layers: masks, rotary tables, KV cache, recorded activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import CacheRows
from quatrain.models.transformer.recurrence import Recurrence


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
class Routing:
    """What the router of one layer decided, for N tokens.

    logits (N, E) in float32. experts (N, K): the chosen experts; E where an assignment was dropped, or the token is
    padding. weights (N, K). text (N): False at padding; None: all tokens are text.
    """

    logits: Tensor
    experts: Tensor
    weights: Tensor
    text: Tensor | None = None


@dataclass
class Prefix:
    """Keys and values of a learned prefix; they replace those that each layer computes at the prefix's slots.

    layers: for each layer keys and values (num_key_value_heads, S, head_dim), or (B, …) with one prefix per row. slots
    (B, S): the slots of the prefix in each row; None: the first S. active (B, S): which slots are replaced; None: all.
    """

    layers: list[tuple[Tensor, Tensor]]
    slots: Tensor | None = None
    active: Tensor | None = None

    def insert(self, computed: Tensor, learned: Tensor) -> Tensor:
        """The computed keys or values (B, H, T, D) with those of the prefix (H, S, D) or (B, H, S, D) in its slots."""
        learned = learned.to(computed.dtype).expand(computed.shape[0], -1, -1, -1)
        if self.slots is None and self.active is None:
            return torch.cat((learned, computed[:, :, learned.shape[2] :]), dim=2)
        slots = self.slots
        if slots is None:
            slots = torch.arange(learned.shape[2], device=computed.device).expand(computed.shape[0], -1)
        slots = slots[:, None, :, None].expand_as(learned)
        if self.active is not None:
            learned = torch.where(self.active[:, None, :, None], learned, computed.gather(2, slots))
        return computed.scatter(2, slots, learned)


@dataclass
class AttentionMask:
    """Which keys a query may attend to in one type of layer, and the bias added to its scores.

    mask (B or 1, T, S): True where a query attends to a key; None: everywhere, or for `causal` to no later key. bias
    (B or 1, H, T, S): positional bias of the scores (ALiBi, relative), or None. without_keys (B, T or 1): queries that
    have no key, whose attention is 0; None: there are none. use_cpu_kernel: whether the hand-written CPU kernel runs.
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
    values. prefix: keys and values of a soft prompt. recurrence: what recurrent layers read. text (B, T): False at
    padding, None where there is none. routing: the list to which each mixture of experts adds its decisions, None to
    record none. query_scale (B or 1, T, 1, 1): factor of the queries by position. distances: embedded distances (N,
    hidden_size) and the row of each query and key (T, S), of disentangled attention. lent: keys and values of layers
    that later ones use too, by the number of the layer. layer_inputs (B, T, L, C): what each layer's own embedding of
    the tokens adds to it.
    """

    masks: dict[str, AttentionMask]
    rotary: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    cache: CacheRows | None = None
    trace: Trace | None = None
    encoded: Tensor | None = None
    prefix: Prefix | None = None
    recurrence: Recurrence = field(default_factory=Recurrence)
    text: Tensor | None = None
    routing: list[Routing] | None = None
    query_scale: Tensor | None = None
    distances: tuple[Tensor, Tensor] | None = None
    lent: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    layer_inputs: Tensor | None = None


def self_attention_mask(
    config: ModelConfig,
    kind: str,
    segments: Tensor | None,
    queries: int,
    keys: int,
    first_key: int,
    device: torch.device,
) -> Tensor | None:
    """Which of the last `keys` slots each of the last `queries` slots attends to: (B or 1, queries, keys), or None.

    None means no restriction for an encoder or a single query, and a plain causal mask otherwise. With `segments` (B,
    all slots) a token attends within its segment; padding (0) attends to padding, so that no row is empty. `first_key`
    is the slot of the first key.
    """
    total = first_key + keys
    window = config.sliding_window if kind == "sliding" else None
    distance_limit = None if window is None else (window if config.is_causal else window // 2 + 1)
    is_limited = distance_limit is not None and total > distance_limit
    if config.is_causal and queries == 1 and distance_limit is not None and keys <= distance_limit:
        is_limited = False
    if segments is None and not is_limited and (not config.is_causal or queries == 1 or queries == total):
        return None
    slots = torch.arange(total, device=device)
    distance = slots[first_key:][None, :] - slots[total - queries :, None]
    mask = distance <= 0 if config.is_causal else torch.ones_like(distance, dtype=torch.bool)
    if is_limited and distance_limit is not None:
        mask = mask & (distance.abs() < distance_limit)
    if segments is None:
        return mask[None]
    query_segments, key_segments = segments[:, total - queries : total, None], segments[:, None, first_key:total]
    return (query_segments == key_segments) & mask


def branch_mask(branches: Tensor) -> Tensor:
    """Which keys a causal model's queries see, (B, T, T), where texts branch off a common beginning.

    `branches` (B, T): 0 for the beginning and the padding, else the number of a token's branch. A token sees what is
    before it of the beginning and of its own branch.
    """
    length = branches.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branches.device).tril_()
    keys = branches[:, None, :]
    return causal & ((keys == 0) | (keys == branches[:, :, None]))


def self_attention_mask_at(config: ModelConfig, kind: str, distance: Tensor) -> Tensor:
    """Which keys a causal model's queries see, from the distances (B, T, S) of keys ahead of their queries."""
    seen = distance <= 0
    return seen & (distance > -config.sliding_window) if kind == "sliding" and config.sliding_window else seen


def cross_attention_mask(
    segments: Tensor | None, encoder_segments: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The cross-attention mask (B, T or 1, S), None for all keys; and the queries without any key (B, T or 1), or None.

    With segments on both sides a token attends to its own segment. Padding in the decoder, or a decoder without
    segments, attends to all tokens but padding. The mask row of a query without a key is all True to avoid NaN; the
    caller discards its result.
    """
    if encoder_segments is None:
        return None, None
    is_text = (encoder_segments != 0)[:, None, :]
    mask = is_text
    if segments is not None:
        same_segment = segments[:, :, None] == encoder_segments[:, None, :]
        mask = torch.where((segments == 0)[:, :, None], is_text, same_segment & is_text)
    without_keys = ~mask.any(-1)
    if mask.device.type == "cpu" and not bool(without_keys.any()):  # On a GPU this check would wait for the device.
        return mask, None
    return mask | without_keys[..., None], without_keys
