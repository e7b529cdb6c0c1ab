"""Mamba 2 (Dao & Gu 2024, arXiv 2405.21060): a state-space layer whose decay, input and output depend on the token.

Each head keeps a matrix S (P, N): S[t] = exp(Δ A) S[t-1] + Δ x Bᵀ and y[t] = S[t] C + D x. The step size Δ, the input B
and the output C follow from the token; A and D are learned numbers of each head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.kernels import cpu
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import ForwardContext
from quatrain.models.transformer.norms import RMSNorm
from quatrain.models.transformer.recurrence import causal_convolution, convolved_channels, scan, step

STEP_SIZES = 0.001, 0.1
"""Least and greatest step size Δ at the start of training."""


def initial_steps(heads: int, generator: torch.Generator) -> Tensor:
    """Biases (heads) whose softplus is uniform on a logarithmic scale, from the least step size to the greatest."""
    low, high = (math.log(size) for size in STEP_SIZES)
    sizes = (torch.rand(heads, generator=generator) * (high - low) + low).exp()
    return sizes + (-torch.expm1(-sizes)).log()


class Mamba2(nn.Module):
    """The mixer of Mamba 2: (B, T, hidden_size) to the same.

    `in_proj` gives the gate, the convolved channels (values, B, C) and the step sizes, in this order.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.config = layer, config
        self.heads, self.width = config.recurrent_heads, config.recurrent_head_dim
        self.groups, self.size = config.recurrent_groups, config.recurrent_state_size
        inner, channels = self.heads * self.width, convolved_channels(config)
        self.parts = inner, channels, self.heads
        self.in_proj = nn.Linear(config.hidden_size, sum(self.parts), bias=config.recurrent_bias)
        self.conv = nn.Conv1d(channels, channels, config.conv_kernel, groups=channels, bias=config.conv_bias)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        """log(-A)."""
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNorm(inner, config.norm_eps)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.recurrent_bias)

    def initial(self, leaf: str, generator: torch.Generator) -> Tensor | None:
        """The initial value of a parameter that is no projection and no norm."""
        if leaf == "A_log":
            return torch.arange(1, self.heads + 1).float().log()
        if leaf == "D":
            return torch.ones(self.heads)
        if leaf == "dt_bias":  # softplus(bias) is uniform on a logarithmic scale.
            return initial_steps(self.heads, generator)
        return None

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        recurrence, stored = context.recurrence, None
        if context.cache is not None:
            stored = context.cache.recurrent_state(self.layer)
        gate, convolved, steps = self.in_proj(recurrence.gather(x)).split(self.parts, dim=-1)
        convolved, inputs = causal_convolution(
            convolved, self.conv.weight, self.conv.bias, None if stored is None else stored[0], recurrence
        )
        values, keys, queries = F.silu(convolved).split(
            (self.parts[0], self.groups * self.size, self.groups * self.size), dim=-1
        )
        values, keys, queries = (
            part.float().unflatten(-1, shape)
            for part, shape in (
                (values, (self.heads, self.width)),
                (keys, (self.groups, self.size)),
                (queries, (self.groups, self.size)),
            )
        )
        sizes = F.softplus(steps.float() + self.dt_bias.float()).clamp(*self.config.step_limits)
        decay = -self.A_log.float().exp() * sizes
        scaled = values * sizes[..., None]
        state: Tensor | None
        if stored is not None and x.shape[1] == 1 and recurrence.counts is None and recurrence.runs is None:
            output, state = step(queries[:, 0], keys[:, 0], scaled[:, 0], decay[:, 0], stored[1])
            output = output[:, None]
        else:
            output, state = scan(queries, keys, scaled, decay, None if stored is None else stored[1], recurrence)
        if context.cache is not None and inputs is not None and state is not None:
            context.cache.store_recurrent_state(self.layer, (inputs, state))
        output = output + values * self.D.float()[:, None]
        output = output.flatten(2).to(x.dtype)
        gated = cpu.SwiGLUFunction.apply(gate, output) if cpu.supports(gate) else F.silu(gate) * output
        output = self._normalized(gated)
        return recurrence.scatter(self.o_proj(output))

    def _normalized(self, x: Tensor) -> Tensor:
        """The norm of each group of channels."""
        if self.groups == 1:
            return self.norm(x)
        grouped = x.unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(grouped, grouped.shape[-1:], None, self.norm.eps).flatten(-2)
        return normed * self.norm.weight.to(x.dtype)
