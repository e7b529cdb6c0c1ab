"""Recurrent token mixers: what all of them share.

A recurrent layer keeps a state of constant size instead of the keys and values of all past tokens. It has two forms
that give the same result: a parallel one, which reads a text in chunks (training, prompts), and a step, which reads one
token (decoding). Dao & Gu 2024 (arXiv 2405.21060) derive the chunked form that `scan` uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig

CHUNK = 64
"""Tokens of a chunk. Within a chunk the work grows with its square, and the memory for states with their number."""

Shape = tuple[int, ...]


@dataclass
class Recurrence:
    """Which tokens of a forward pass the recurrent layers read, and where texts begin.

    order (B, T): the places of each row's tokens, padding last; None: padding, if any, is on the right. counts (B):
    tokens of each row without padding; None: there is no padding. runs (B, T), in that order: the number of the text
    that a token belongs to, where 0 continues the state before this pass; None: every row is one text.
    """

    order: Tensor | None = None
    counts: Tensor | None = None
    runs: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """x (B, T, D) with the padding of each row behind its tokens."""
        return x if self.order is None else x.gather(1, self.order[..., None].expand_as(x))

    def scatter(self, x: Tensor) -> Tensor:
        """The inverse of `gather`."""
        if self.order is None:
            return x
        return x.gather(1, self.order.argsort(1)[..., None].expand_as(x))

    def text(self, length: int, like: Tensor) -> Tensor | None:
        """Which of `length` places hold a token (B, T); None: all."""
        if self.counts is None:
            return None
        return torch.arange(length, device=like.device) < self.counts[:, None]


def make_recurrence(
    segments: Tensor | None, past: int, length: int, padding: Sequence[int] | None, device: torch.device
) -> Recurrence:
    """How recurrent layers read the last `length` columns of `segments` (B, past + length), 0 for padding.

    A token whose segment differs from that of the text before it starts a new text. `padding` is the number of padding
    columns on the right of each row, for rows without segments.
    """
    if segments is None:
        if padding is None:
            return Recurrence()
        return Recurrence(counts=length - torch.tensor(list(padding), device=device))
    new = segments[:, past:]
    is_text = new != 0
    counts = is_text.sum(1)
    order = None
    if bool((is_text[:, 1:] & ~is_text[:, :-1]).any()):  # Padding before a token.
        order = torch.argsort((~is_text).to(torch.uint8), dim=1, stable=True)
        new = new.gather(1, order)
    last = torch.zeros_like(new[:, :1])
    if past:
        before = segments[:, :past]
        places = torch.where(before != 0, torch.arange(past, device=device), -1).amax(1, keepdim=True)
        last = torch.where(places < 0, 0, before.gather(1, places.clamp(min=0)))
    previous = torch.cat((last, new[:, :-1]), dim=1)
    starts = (new != previous) & (new != 0) & (previous != 0)
    runs = starts.cumsum(1) if bool(starts.any()) else None
    return Recurrence(order, None if bool((counts == length).all()) else counts, runs)


def state_shapes(config: ModelConfig, kind: str) -> tuple[Shape, ...]:
    """Shapes of the tensors of one text's state in a recurrent layer; none for attention."""
    heads, width, size = config.recurrent_heads, config.recurrent_head_dim, config.recurrent_state_size
    if kind == "mamba2":
        return (config.conv_kernel - 1, convolved_channels(config)), (heads, width, size)
    if kind == "gated_delta":
        return (config.conv_kernel - 1, convolved_channels(config)), (heads, size, width)
    if kind == "mlstm":
        return (heads, width + 1, size), (heads,)
    return ()


def state_bytes(config: ModelConfig) -> int:
    """Bytes of the states of all recurrent layers for one text of any length, in float32."""
    shapes = [shape for kind in config.layer_types for shape in state_shapes(config, kind)]
    return 4 * sum(math.prod(shape) for shape in shapes)


def convolved_channels(config: ModelConfig) -> int:
    """Channels of the causal convolution: values, and the keys and queries of all groups."""
    return (
        config.recurrent_heads * config.recurrent_head_dim + 2 * config.recurrent_groups * config.recurrent_state_size
    )


class RecurrentStates:
    """The states of all recurrent layers, one for each slot of a KV cache, in float32.

    `layers` maps a layer to its tensors (slots, …). A state cannot be shortened: it is kept, copied or emptied.
    """

    def __init__(self, config: ModelConfig, slots: int, device: torch.device):
        self.layers = {
            layer: tuple(torch.zeros(slots, *shape, device=device) for shape in state_shapes(config, kind))
            for layer, kind in enumerate(config.layer_types)
            if state_shapes(config, kind)
        }

    def __bool__(self) -> bool:
        return bool(self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [tensor for tensors in self.layers.values() for tensor in tensors]

    def resize(self, slots: int) -> None:
        """Adds empty states, or frees all but the first `slots`."""

        def resized(old: Tensor) -> Tensor:
            new = old.new_zeros(slots, *old.shape[1:])
            kept = min(slots, old.shape[0])
            new[:kept] = old[:kept]
            return new

        self._replace(resized)

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders states."""
        self._replace(lambda old: old[rows])

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        self.layers = {layer: tuple(map(change, tensors)) for layer, tensors in self.layers.items()}

    def empty(self, slot: int) -> None:
        """The state before the first token of a text."""
        for tensor in self._tensors():
            tensor[slot] = 0

    def copy(self, source: int, target: int) -> None:
        """Copies a slot."""
        for tensor in self._tensors():
            tensor[target] = tensor[source]

    def swap(self, one: int, other: int) -> None:
        """Exchanges two slots."""
        for tensor in self._tensors():
            tensor[[one, other]] = tensor[[other, one]]


class CausalConvolution(torch.autograd.Function):
    """A convolution of each channel by itself: inputs (B, K - 1 + T, C), weight (C, K), bias (C) to (B, T, C).

    Written out because autograd would pad the gradient of each tap to the size of all inputs.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Adds one tap after the other to a row, which stays in the second cache meanwhile."""
        ctx.save_for_backward(inputs, weight)
        taps = weight.t().contiguous()
        length = inputs.shape[1] - len(taps) + 1
        result = bias.repeat(len(inputs), length, 1)
        for row, target in zip(inputs, result, strict=True):
            for number, tap in enumerate(taps):
                target.addcmul_(row[number : number + length], tap)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of all three."""
        inputs, weight = ctx.saved_tensors
        taps, gradient = weight.t().contiguous(), gradients[0].contiguous()
        length = gradient.shape[1]
        of_inputs, of_taps, product = torch.zeros_like(inputs), torch.zeros_like(taps), torch.empty_like(gradient[0])
        for row, outer, target in zip(inputs, gradient, of_inputs, strict=True):
            for number, tap in enumerate(taps):
                target[number : number + length].addcmul_(outer, tap)
                of_taps[number] += torch.mul(row[number : number + length], outer, out=product).sum(0)
        return of_inputs, of_taps.t(), gradient.sum((0, 1))


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, recurrence: Recurrence
) -> tuple[Tensor, Tensor | None]:
    """A causal convolution of each channel by itself; returns the result (B, T, C) and, given a state, the next one.

    x (B, T, C); weight (C, 1, K); state (B, K - 1, C): the inputs before x. A token does not see inputs of another
    text.
    """
    batch, length, channels = x.shape
    taps = weight.shape[-1]
    before = x.new_zeros(batch, taps - 1, channels) if state is None else state.to(x.dtype)
    inputs = torch.cat((before, x), dim=1)
    runs = None if recurrence.runs is None else F.pad(recurrence.runs, (taps - 1, 0))
    wide = torch.promote_types(x.dtype, torch.float32)  # A sum in a 16-bit type would be rounded at every tap.
    taps_of, offset = weight[:, 0].to(wide), x.new_zeros(channels, dtype=wide) if bias is None else bias.to(wide)
    if runs is None:
        result = CausalConvolution.apply(inputs.to(wide), taps_of, offset)
    else:
        result = offset
        for tap in range(taps):
            same = (runs[:, tap : tap + length] == runs[:, taps - 1 :])[..., None]
            seen = torch.where(same, inputs[:, tap : tap + length], 0.0)
            result = torch.addcmul(result, seen.to(wide), taps_of[:, tap])
    result = result.to(x.dtype)
    if state is None:
        return result, None
    if runs is None and recurrence.counts is None:
        return result, inputs[:, length:]
    counts = recurrence.counts
    counts = torch.full((batch,), length, device=x.device) if counts is None else counts
    places = counts[:, None] + torch.arange(taps - 1, device=x.device)
    last = inputs.gather(1, places[..., None].expand(-1, -1, channels))
    if runs is not None:
        last = torch.where((runs.gather(1, places) == runs.gather(1, places[:, -1:]))[..., None], last, 0.0)
    return result, last


class WithinChunks(torch.autograd.Function):
    """What the tokens of a chunk add to each other: (scores * exp(decay[i] - decay[j])) @ values, where visible.

    scores (B, G, chunks, L, L); decay (B, G, H / G, chunks, L), sums from the start of a chunk; values (B, G, H / G,
    chunks, L, P); visible broadcasts to (B, G, H / G, chunks, L, L). Written out because the products of L x L are most
    of the time beside the matrix products, and autograd makes twice as many.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, decay: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Stores the shares, and their products with the scores."""
        shares = (decay[..., :, None] - decay[..., None, :]).masked_fill_(~visible, float("-inf")).exp_()
        weights = shares * scores[:, :, None]
        values = values.contiguous()
        ctx.save_for_backward(shares, weights, values)
        return weights @ values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of scores, decay and values."""
        shares, weights, values = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        outer = gradient @ values.mT
        of_scores = torch.linalg.vecdot(outer, shares, dim=2) if shares.shape[2] > 1 else (outer * shares).squeeze(2)
        change = outer.mul_(weights)
        return of_scores, change.sum(-1) - change.sum(-2), weights.mT @ gradient, None


def scan(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    recurrence: Recurrence,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """The outputs y (B, T, H, P) of S[t] = exp(log_decay[t]) S[t-1] + values[t] keys[t]ᵀ, y[t] = S[t] queries[t].

    queries, keys (B, T, G, N), each group shared by H / G neighbouring heads; values (B, T, H, P); log_decay (B, T, H),
    at most 0; state (B, H, P, N), or None for texts that begin here. Returns y and, given a state, the last one.
    Padding leaves the state as it is.

    Within a chunk, the outputs are masked products of queries and keys, as in attention; the state at its end is passed
    on to the next chunk.
    """
    batch, length, heads, width = values.shape
    groups, size = keys.shape[2:]
    own = heads // groups
    text = recurrence.text(length, values)
    if text is not None:
        log_decay = torch.where(text[..., None], log_decay, 0.0)
        values = torch.where(text[..., None, None], values, 0.0)
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:
        queries, keys, values = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (queries, keys, values))
        log_decay = F.pad(log_decay, (0, 0, 0, missing))
    count = (length + missing) // chunk
    # (B, G, chunks, L, …): one product for all heads of a group
    queries, keys = (x.view(batch, count, chunk, groups, size).permute(0, 3, 1, 2, 4) for x in (queries, keys))
    values = values.view(batch, count, chunk, groups, own, width).permute(0, 3, 4, 1, 2, 5)
    decay = log_decay.view(batch, count, chunk, groups, own).permute(0, 3, 4, 1, 2).cumsum(-1)  # (B, G, H/G, chunks, L)
    visible = torch.ones(chunk, chunk, dtype=torch.bool, device=values.device).tril_()
    reads, writes, passes = decay, decay[..., -1:] - decay, decay[..., -1]
    if recurrence.runs is not None:
        visible, read, written, passed = (
            mask[:, None, None] for mask in visible_in_chunks(recurrence.runs, visible, count)
        )
        reads, writes, passes = (
            x.masked_fill(~mask, float("-inf")) for x, mask in ((reads, read), (writes, written), (passes, passed))
        )
    output = WithinChunks.apply(queries @ keys.mT, decay, values, visible)
    # The states before each chunk. Without one before the first, that chunk reads none, and the last leaves none.
    first, last = (1, count - 1) if state is None else (0, count)
    kept = [] if state is None else [state.view(batch, groups, own, width, size)]
    if last:
        shares = values[:, :, :, :last] * writes[:, :, :, :last, :, None].exp()
        shares = shares.permute(0, 1, 3, 4, 2, 5).reshape(batch, groups, last, chunk, own * width)
        added = (shares.mT @ keys[:, :, :last]).view(batch, groups, last, own, width, size)
        passes = passes.exp()[..., None, None]
        for number in range(last):
            new = added[:, :, number]
            kept.append(torch.addcmul(new, kept[-1], passes[:, :, :, number]) if kept else new)
    final = None if state is None else kept.pop().view(batch, heads, width, size)
    if kept:
        states = torch.stack(kept, dim=2).view(batch, groups, count - first, own * width, size)
        read = (queries[:, :, first:] @ states.mT).view(batch, groups, count - first, chunk, own, width)
        read = read.permute(0, 1, 4, 2, 3, 5) * reads[:, :, :, first:, :, None].exp()
        if first:
            output = torch.cat((output[:, :, :, :first], output[:, :, :, first:] + read), dim=3)
        else:
            output = output + read
    output = output.permute(0, 3, 4, 1, 2, 5).reshape(batch, count * chunk, heads, width)
    return output[:, :length], final


def visible_in_chunks(runs: Tensor, causal: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What texts in a row see of each other, from the number of each token's text (B, T).

    The tokens of a chunk that a token sees (B, chunks, L, L). Whether a token sees the state before its chunk, and
    whether the state behind the chunk contains it (B, chunks, L). Whether that contains the one before (B, chunks).
    """
    chunk = causal.shape[0]
    missing = count * chunk - runs.shape[1]
    runs = torch.cat((runs, runs[:, -1:].expand(-1, missing)), dim=1).view(-1, count, chunk)
    before, end = F.pad(runs[:, :-1, -1], (1, 0)), runs[..., -1]
    return (
        causal & (runs[..., :, None] == runs[..., None, :]),
        runs == before[..., None],
        runs == end[..., None],
        end == before,
    )


def step(queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`scan` for one token: queries, keys (B, G, N), values (B, H, P), log_decay (B, H), state (B, H, P, N)."""
    batch, heads, width, size = state.shape
    groups = keys.shape[1]
    grouped = state.view(batch, groups, heads // groups, width, size)
    added = values.view(batch, groups, -1, width, 1) * keys[:, :, None, None]
    state = torch.addcmul(added, grouped, log_decay.exp().view(batch, groups, -1, 1, 1))
    output = (state @ queries[:, :, None, :, None]).view(batch, heads, width)
    return output, state.view(batch, heads, width, size)


def check_kept(slot: int, present: int, length: int) -> None:
    """Raises InputError where a text would be shortened whose state exists only after its last token."""
    if 0 < length != present:
        raise InputError(
            f"Slot {slot} holds the state after {present} tokens; a recurrent model cannot go back to {length}. Empty "
            "the slot and read the text again."
        )
