"""Hand-written forward and backward passes for training on the CPU, where PyTorch's are far from the machine's limit.

Measured with PyTorch 2.13 on two cores with AVX-512 bfloat16 (4,096 tokens, width 256, forward and backward): attention
2.5 ms against 39 ms of `scaled_dot_product_attention`, RMSNorm 0.5 ms against 12 ms. Elsewhere the stack uses
PyTorch's. `benchmarks/kernels.py` measures them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SCORES = 1 << 27
"""Most attention scores (B H T S) that are kept for the backward pass; longer texts take the path without them."""

MAX_LENGTH = {torch.bfloat16: 768, torch.float32: 128}
"""Longest text for which the hand-written attention is the faster one (measured by benchmarks/kernels.py)."""


def suits(x: Tensor) -> bool:
    """Whether a tensor is trained on the CPU, in a dtype that these passes are written for."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.dtype in (torch.bfloat16, torch.float32)


def suits_attention(x: Tensor, heads: int, slots: int, *, alone: bool) -> bool:
    """Whether attention of x (B, T, C) over `slots` keys is fastest by hand; `alone` where PyTorch has no fast pass."""
    if not suits(x) or x.shape[0] * heads * x.shape[1] * slots > MAX_SCORES:
        return False
    return alone or max(x.shape[1], slots) <= MAX_LENGTH[x.dtype]


class RMSNormFunction(torch.autograd.Function):
    """x (…, C) over its root mean square, times weight (C,); the statistics in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Keeps the normalised x and the scale (…, 1)."""
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
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
    """silu(gate) * up, keeping the two inputs and silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Elementwise over tensors of one shape."""
        activated = F.silu(gate)
        ctx.save_for_backward(gate, up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gate and up."""
        (gradient,) = gradients
        gate, up, activated = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * activated


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

    query (B, T, H, D), key, value (B, S, H, D) as the projections leave them; cos, sin (T or B, T, 1, R/2) ready to
    broadcast, turning the first R channels, or None; bias (1 or B, 1 or H, T, S), -inf where a query may not look, or
    None where it sees all; cap(x) is c tanh(x / c) for a `softcap` c. Gives (B, T, H D).
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
    ) -> Tensor:
        """Keeps rotated queries and keys, values and attention weights."""
        batch, length, heads, width = query.shape
        slots = key.shape[1]
        queries = query.new_empty(batch, heads, length, width)
        keys, values = query.new_empty(2, batch, heads, slots, width)
        _rotate(query, queries.transpose(1, 2), cos, sin, 1)
        _rotate(key, keys.transpose(1, 2), cos, sin, 1)
        values.copy_(value.transpose(1, 2))
        q, k, v = queries.view(-1, length, width), keys.view(-1, slots, width), values.view(-1, slots, width)
        spread = None
        if bias is not None:
            alike = bias.shape[:2] == (1, 1)
            spread = bias.flatten(0, 1) if alike else bias.expand(batch, heads, length, slots).flatten(0, 1)
        capped = None if softcap is None else torch.bmm(q, k.mT).mul_(scale / softcap).tanh_()
        if capped is not None and softcap is not None:
            scores = capped * softcap if spread is None else torch.add(spread, capped, alpha=softcap)
        elif spread is None:
            scores = torch.bmm(q, k.mT).mul_(scale)
        else:
            scores = torch.baddbmm(spread, q, k.mT, alpha=scale)
        weights = scores.softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights, cos, sin, capped)
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        mixed = torch.bmm(weights, v).view(batch, heads, length, width)
        return mixed.transpose(1, 2).reshape(batch, length, heads * width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key and value, in their own layout, and of a bias that is learned."""
        queries, keys, values, weights, cos, sin, capped = ctx.saved_tensors
        batch, heads, length, width = queries.shape
        slots = keys.shape[2]
        q, k, v = queries.view(-1, length, width), keys.view(-1, slots, width), values.view(-1, slots, width)
        gradient = gradients[0].view(batch, length, heads, width).transpose(1, 2).reshape(-1, length, width)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        torch.bmm(weights.mT, gradient, out=dv)
        scores = torch._softmax_backward_data(torch.bmm(gradient, v.mT), weights, -1, weights.dtype)
        for_bias = None
        if ctx.needs_input_grad[5]:
            axes = [axis for axis in (0, 1) if ctx.bias_shape[axis] == 1]
            for_bias = scores.view(batch, heads, length, slots)
            for_bias = for_bias.sum(axes, keepdim=True) if axes else for_bias.clone()
        if capped is not None:
            scores = torch.ops.aten.tanh_backward(scores, capped)
        scores.mul_(ctx.scale)
        torch.bmm(scores, k, out=dq)
        torch.bmm(scores.mT, q, out=dk)
        found = []
        for flat, size, turned in ((dq, length, True), (dk, slots, True), (dv, slots, False)):
            source = flat.view(batch, heads, size, width).transpose(1, 2)
            target = flat.new_empty(batch, size, heads, width)
            _rotate(source, target, cos if turned else None, sin if turned else None, -1)
            found.append(target)
        return found[0], found[1], found[2], None, None, for_bias, None, None


def _rotate(source: Tensor, target: Tensor, cos: Tensor | None, sin: Tensor | None, direction: int) -> None:
    """Writes source (B, T, H, D) turned by its angle, forwards (1) or back (-1), into target; a copy without angles."""
    if cos is None or sin is None:
        target.copy_(source)
        return
    width = 2 * cos.shape[-1]
    if width < source.shape[-1]:
        target[..., width:].copy_(source[..., width:])
        source, target = source[..., :width], target[..., :width]
    first, second = source.chunk(2, dim=-1)
    into_first, into_second = target.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first)
    into_first.addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=into_second)
    into_second.addcmul_(first, sin, value=direction)
