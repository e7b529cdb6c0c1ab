"""Hand-written forward and backward passes for training on the CPU, where PyTorch's are far from the machine's limit.

Measured with PyTorch 2.13 on two cores with AVX-512 bfloat16 (4,096 tokens, width 256, forward and backward): attention
2.5 ms against 39 ms of `scaled_dot_product_attention`, RMSNorm 0.5 ms against 12 ms. Elsewhere the stack uses
PyTorch's. `benchmarks/passes.py` measures them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.models.transformer.cross_entropy import row_chunks

MAX_SCORES = 1 << 27
"""Most attention scores (B H T S) that are kept for the backward pass; longer texts take the path without them."""

MAX_LENGTH = {False: {torch.bfloat16: 1024, torch.float32: 128}, True: {torch.bfloat16: 1024, torch.float32: 256}}
"""Longest text for which the hand-written attention is worth the weights that it keeps, both ways and causal (4,096
tokens, 12 heads of 64 channels, two cores). Causal in float32 it is still 1.3 times as fast at 512 tokens, which is a
fiftieth of a step, and keeps a tenth of its memory."""

BLOCK = 128
"""Queries of a block of causal attention: fewer would make its products too small to be fast."""


def supports(x: Tensor) -> bool:
    """Whether a tensor is trained on the CPU, in a dtype that these passes are written for."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.dtype in (torch.bfloat16, torch.float32)


def supports_attention(x: Tensor, heads: int, slots: int, *, alone: bool, causal: bool) -> bool:
    """Whether attention of x (B, T, C) over `slots` keys is fastest by hand; `alone` where PyTorch has no fast pass."""
    if not supports(x) or x.shape[0] * heads * x.shape[1] * slots > MAX_SCORES:
        return False
    return alone or max(x.shape[1], slots) <= MAX_LENGTH[causal][x.dtype]


class RMSNormFunction(torch.autograd.Function):
    """x (…, C) over its root mean square, times weight (C,); the statistics in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Keeps the normalised x and the scale (…, 1)."""
        flat = x.reshape(-1, x.shape[-1])
        scale = torch.empty(len(flat), 1, dtype=torch.float32, device=x.device)
        for rows in row_chunks(flat):
            torch.linalg.vector_norm(flat[rows], dim=-1, keepdim=True, dtype=torch.float32, out=scale[rows])
        scale = scale.view(*x.shape[:-1], 1)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalized = x * scale.to(x.dtype)
        ctx.save_for_backward(normalized, scale, weight)
        return normalized * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x / rms: dx = (g w - n mean(g w n)) / rms, dw = sum of g n."""
        (gradient,) = gradients
        normalized, scale, weight = ctx.saved_tensors
        for_weight = None
        if ctx.needs_input_grad[1]:
            rows = (gradient * normalized).reshape(-1, gradient.shape[-1])
            for_weight = rows.sum(0, dtype=torch.float32).to(weight.dtype)
        gradient = gradient * weight
        mean = torch.linalg.vecdot(gradient, normalized)[..., None].mul_(-1 / gradient.shape[-1])
        return torch.addcmul(gradient, normalized, mean).mul_(scale.to(gradient.dtype)), for_weight, None


class SwiGLUFunction(torch.autograd.Function):
    """silu(gate) * up, keeping the two inputs; silu(gate), of the widest tensors of a block, is worked out anew."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Elementwise over tensors of one shape."""
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gate and up."""
        (gradient,) = gradients
        gate, up = ctx.saved_tensors
        for_gate = torch.empty_like(gate)
        flat = [each.reshape(-1, gate.shape[-1]) for each in (gradient, gate, up)]
        into = for_gate.view(-1, gate.shape[-1])
        for rows in row_chunks(into):
            of_silu = torch.mul(flat[0][rows], flat[2][rows], out=into[rows])
            torch.ops.aten.silu_backward.grad_input(of_silu, flat[1][rows], grad_input=of_silu)
        return for_gate, _gated(gate, gradient)


def _gated(gate: Tensor, other: Tensor) -> Tensor:
    """silu(gate) * other, a strip after the other."""
    found = torch.empty_like(gate)
    into, gates, others = (each.reshape(-1, gate.shape[-1]) for each in (found, gate, other))
    for rows in row_chunks(into):
        torch.ops.aten.silu.out(gates[rows], out=into[rows]).mul_(others[rows])
    return found


class SoftCapFunction(torch.autograd.Function):
    """c tanh(x / c), elementwise, keeping its result alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        """One new tensor, the rest in place."""
        capped = torch.mul(x, 1 / cap).tanh_().mul_(cap)
        ctx.save_for_backward(capped)
        ctx.cap = cap
        return capped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient times 1 - tanh(x / c)^2."""
        (capped,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], capped * (1 / ctx.cap)), None


class AttentionFunction(torch.autograd.Function):
    """Attention that keeps its weights: softmax(cap(scale rotate(q) rotate(k)^T) + bias) v.

    query (B, T, H, D), key, value (B, S, G, D) as the projections leave them, H a multiple of G; cos, sin (T or B, T,
    1, R/2) ready to broadcast, turning the first R channels, or None; bias (1 or B, 1 or H, T, S), -inf where a query
    may not look, or None where it sees all, of one head (1) and not learned where G is not H; cap(x) is c tanh(x / c)
    for a `softcap` c. With `causal` (S = T) no query sees a later key, which a bias must say too: blocks of queries are
    multiplied with the keys up to their last alone. Gives (B, T, H D).

    The queries that share a key's head stand beside each other: no key is repeated, and a product has all of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        bias: Tensor | None,
        scale: float,
        softcap: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Keeps rotated queries and keys, values and attention weights."""
        batch, length, heads, width = query.shape
        slots, groups = key.shape[1:3]
        each = heads // groups
        queries = query.new_empty(batch, groups, length, each, width)
        keys, values = query.new_empty(2, batch, groups, slots, width)
        _rotate(query.unflatten(2, (groups, each)), queries.transpose(1, 2), _wider(cos), _wider(sin), 1)
        _rotate(key, keys.transpose(1, 2), cos, sin, 1)
        values.copy_(value.transpose(1, 2))
        q, k, v = queries.view(-1, length * each, width), keys.view(-1, slots, width), values.view(-1, slots, width)
        spread = None
        if bias is not None:
            alike = bias.shape[:2] == (1, 1)
            spread = bias.flatten(0, 1) if alike else bias.expand(batch, groups, length, slots).flatten(0, 1)
            spread = spread if each == 1 else spread.repeat_interleave(each, dim=1)
        mixed = torch.empty_like(q)
        blocks = [(slice(rows.start * each, rows.stop * each), seen) for rows, seen in _blocks(length, slots, causal)]
        weights: list[Tensor] = []
        capped: list[Tensor | None] = []
        for rows, seen in blocks:
            added = None if spread is None else spread[:, rows, seen]
            later = _later((rows.stop - rows.start) // each, each, q) if causal and bias is None else None
            found, bent = _weights(q[:, rows], k[:, seen], added, later, scale, softcap)
            weights.append(found)
            capped.append(bent)
            torch.bmm(found, v[:, seen], out=mixed[:, rows])
        ctx.save_for_backward(queries, keys, values, cos, sin, *weights, *capped)
        ctx.scale, ctx.bias_shape, ctx.blocks = scale, None if bias is None else bias.shape, blocks
        return mixed.view(queries.shape).transpose(1, 2).reshape(batch, length, heads * width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key and value, in their own layout, and of a bias that is learned."""
        queries, keys, values, cos, sin, *kept = ctx.saved_tensors
        blocks = ctx.blocks
        batch, groups, length, each, width = queries.shape
        slots = keys.shape[2]
        q, k, v = queries.view(-1, length * each, width), keys.view(-1, slots, width), values.view(-1, slots, width)
        gradient = gradients[0].view(batch, length, groups, each, width).transpose(1, 2).reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for_bias = q.new_zeros(ctx.bias_shape) if ctx.needs_input_grad[5] else None
        # The last block sees every key and writes what the others add to.
        for number in reversed(range(len(blocks))):
            (rows, seen), weights, capped = blocks[number], kept[number], kept[number + len(blocks)]
            last = number == len(blocks) - 1
            part = gradient[:, rows]
            _product(dv[:, seen], weights.mT, part, add=not last)
            scores = torch._softmax_backward_data(torch.bmm(part, v[:, seen].mT), weights, -1, weights.dtype)
            if for_bias is not None:
                for_bias[..., rows, seen] += scores.view(batch, groups, *scores.shape[1:]).sum_to_size(
                    *ctx.bias_shape[:2], *scores.shape[1:]
                )
            if capped is not None:
                scores = torch.ops.aten.tanh_backward(scores, capped)
            torch.bmm(scores, k[:, seen], out=dq[:, rows])
            _product(dk[:, seen], scores.mT, q[:, rows], add=not last)
        dq.mul_(ctx.scale)
        dk.mul_(ctx.scale)
        for_query = dq.new_empty(batch, length, groups, each, width)
        for_key, for_value = dk.new_empty(2, batch, slots, groups, width)
        _rotate(dq.view(queries.shape).transpose(1, 2), for_query, _wider(cos), _wider(sin), -1)
        _rotate(dk.view(keys.shape).transpose(1, 2), for_key, cos, sin, -1)
        for_value.copy_(dv.view(values.shape).transpose(1, 2))
        return for_query.flatten(2, 3), for_key, for_value, None, None, for_bias, None, None, None


def _wider(angles: Tensor | None) -> Tensor | None:
    """Cosines or sines (…, 1, R/2) for heads that are in groups."""
    return None if angles is None else angles.unsqueeze(-2)


def _blocks(length: int, slots: int, causal: bool) -> list[tuple[slice, slice]]:
    """Queries that are multiplied together, and the keys that they may see."""
    if not causal or length != slots:
        return [(slice(0, length), slice(0, slots))]
    ends = [*range(BLOCK, length, BLOCK), length]
    return [(slice(start, end), slice(0, end)) for start, end in zip([0, *ends], ends, strict=False)]


def _later(length: int, each: int, like: Tensor) -> Tensor:
    """A causal mask (length * each, length), -inf at later keys; `each` query rows share a position."""
    later = like.new_full((length, length), float("-inf")).triu_(1)
    return later.repeat_interleave(each, dim=0)


def _weights(
    q: Tensor, k: Tensor, bias: Tensor | None, later: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Attention weights (N, T, S) of q (N, T, D) over k (N, S, D), and the tanh under a softcap. `later` (T, L) is
    added to the scores of the last L keys.
    """
    capped = None
    if softcap is not None:
        capped = torch.bmm(q, k.mT).mul_(scale / softcap).tanh_()
        scores = capped * softcap if bias is None else torch.add(bias, capped, alpha=softcap)
    elif bias is None:
        scores = torch.baddbmm(q.new_empty(()).expand(1, 1, 1), q, k.mT, beta=0, alpha=scale)
    else:
        scores = torch.baddbmm(bias, q, k.mT, alpha=scale)
    if later is not None:
        scores[..., -later.shape[1] :].add_(later)
    return scores.softmax(-1), capped


def _product(into: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """Writes left right into a tensor, or adds it there."""
    if add:
        into += torch.bmm(left, right)
    else:
        torch.bmm(left, right, out=into)


def _rotate(source: Tensor, target: Tensor, cos: Tensor | None, sin: Tensor | None, direction: int) -> None:
    """Writes source (B, T, …, D) turned by its angle, forwards (1) or back (-1), into target; a copy without angles."""
    if cos is None or sin is None:
        target.copy_(source)
        return
    width = 2 * cos.shape[-1]
    if width < source.shape[-1]:
        target[..., width:].copy_(source[..., width:])
        source, target = source[..., :width], target[..., :width]
    first, second = source.chunk(2, dim=-1)
    torch.mul(source, _table(cos, cos, source), out=target)
    target.addcmul_(torch.cat((second, first), dim=-1), _table(-direction * sin, direction * sin, source))


def _table(first: Tensor, second: Tensor, like: Tensor) -> Tensor:
    """The factors of both halves of a head (T or B, T, …, R) for all heads. Where every row has the same they are
    written down for each head: passes over whole rows are three times as fast as over half a head at a time.
    """
    halves = torch.cat((first, second), dim=-1)
    return halves.expand(like.shape[1:]).contiguous() if halves.dim() < like.dim() else halves
