"""Feed-forward networks: plain (Vaswani et al. 2017) and gated (SwiGLU etc., Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.kernels import cpu
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import ForwardContext

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
}


CLAMPED_GAIN = 1.702
"""Gain of the sigmoid in GPT-OSS's clamped activation."""


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated; (…, hidden_size) to the same.

    `width`, `bias` and `clamp` are those of an expert; by default the model's.
    """

    has_norms = False
    """Whether the network norms the residual stream itself."""

    def __init__(
        self, config: ModelConfig, width: int | None = None, *, bias: bool | None = None, clamp: float | None = None
    ):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size if width is None else width
        bias = config.feed_forward_bias if bias is None else bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias) if config.feed_forward == "gated" else None
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation, self.clamp = ACTIVATIONS[config.activation], clamp
        self.is_swiglu = config.feed_forward == "gated" and config.activation == "silu" and clamp is None

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        """x (…, hidden_size) to the same shape; it needs nothing of the context."""
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) * up, of the outputs of the first two projections."""
        if self.clamp is not None:
            gate, up = gate.clamp(max=self.clamp), up.clamp(-self.clamp, self.clamp)
            return (up + 1) * (gate * torch.sigmoid(gate * CLAMPED_GAIN))
        if self.is_swiglu and cpu.supports(gate):
            return cpu.SwiGLUFunction.apply(gate, up)
        return self.activation(gate) * up

    def projections(self) -> tuple[nn.Module, ...]:
        """The linear layers in the order of their use; an adapter or a quantized layer may be in their place."""
        return tuple(layer for layer in (self.gate_proj, self.up_proj, self.down_proj) if layer is not None)
