"""Gated delta net (Yang et al. 2024, arXiv 2412.06464), the recurrent layer of Qwen3-Next and Qwen 3.5.

Each head keeps a matrix S (N, P), a memory of values under keys of length 1. A token first lets it decay, then corrects
what is stored under its key by a share β: S[t] = a S[t-1] + k β (v - kᵀ a S[t-1])ᵀ and y[t] = S[t]ᵀ q. Within a chunk,
the corrections of all tokens solve a triangular system (the UT transform, Yang et al. 2024, arXiv 2406.06484).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import ForwardContext
from quatrain.models.transformer.mamba import initial_steps
from quatrain.models.transformer.norms import RMSNorm
from quatrain.models.transformer.recurrence import (
    CHUNK,
    Recurrence,
    causal_convolution,
    convolved_channels,
    visible_in_chunks,
)

LARGEST_DECAY = 16
"""The decay rates of the heads are spread up to this number, at the start of training."""


class GatedDeltaNet(nn.Module):
    """The mixer of Qwen 3.5: (B, T, hidden_size) to the same."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.width = config.recurrent_heads, config.recurrent_head_dim
        self.groups, self.size = config.recurrent_groups, config.recurrent_state_size
        hidden, inner, channels = config.hidden_size, self.heads * self.width, convolved_channels(config)
        self.qkv_proj = nn.Linear(hidden, channels, bias=False)
        self.z_proj = nn.Linear(hidden, inner, bias=False)
        """The gate of the output."""
        self.beta_proj = nn.Linear(hidden, self.heads, bias=False)
        self.decay_proj = nn.Linear(hidden, self.heads, bias=False)
        self.conv = nn.Conv1d(channels, channels, config.conv_kernel, groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.norm = RMSNorm(self.width, config.norm_eps)
        self.o_proj = nn.Linear(inner, hidden, bias=False)

    def initial(self, leaf: str, generator: torch.Generator) -> Tensor | None:
        """The initial value of a parameter that is no projection and no norm."""
        if leaf == "A_log":
            return torch.linspace(1, LARGEST_DECAY, self.heads).log()
        return initial_steps(self.heads, generator) if leaf == "dt_bias" else None

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        recurrence = context.recurrence
        inputs: Tensor | None = None
        state: Tensor | None = None
        if context.cache is not None:
            inputs, state = context.cache.recurrent_state(self.layer)
        x = recurrence.gather(x)
        convolved, inputs = causal_convolution(self.qkv_proj(x), self.conv.weight, None, inputs, recurrence)
        keyed = self.groups * self.size
        queries, keys, values = F.silu(convolved).float().split((keyed, keyed, self.heads * self.width), dim=-1)
        queries, keys = (_unit(part.unflatten(-1, (self.groups, self.size))) for part in (queries, keys))
        values = values.unflatten(-1, (self.heads, self.width))
        beta = self.beta_proj(x).float().sigmoid()
        decay = -self.A_log.float().exp() * F.softplus(self.decay_proj(x).float() + self.dt_bias.float())
        queries = queries * self.size**-0.5
        if state is not None and x.shape[1] == 1 and recurrence.counts is None and recurrence.runs is None:
            output, state = delta_step(queries[:, 0], keys[:, 0], values[:, 0], decay[:, 0], beta[:, 0], state)
            output = output[:, None]
        else:
            output, state = delta_scan(queries, keys, values, decay, beta, state, recurrence)
        if context.cache is not None and inputs is not None and state is not None:
            context.cache.store_recurrent_state(self.layer, (inputs, state))
        gate = F.silu(self.z_proj(x).float().unflatten(-1, (self.heads, self.width)))
        output = (self.norm(output.to(x.dtype)) * gate).to(x.dtype)
        return recurrence.scatter(self.o_proj(output.flatten(2)))


def _unit(x: Tensor) -> Tensor:
    """x divided by its length over the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_step(
    queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`delta_scan` for one token: queries, keys (B, G, N), values (B, H, P), log_decay, beta (B, H)."""
    own = values.shape[1] // keys.shape[1]
    queries, keys = (part.repeat_interleave(own, dim=1) for part in (queries, keys))
    state = state * log_decay.exp()[..., None, None]
    change = (values - (keys[:, :, None] @ state)[:, :, 0]) * beta[..., None]
    state = state + keys[..., None] * change[:, :, None]
    return (queries[:, :, None] @ state)[:, :, 0], state


def delta_scan(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None,
    recurrence: Recurrence,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """The outputs (B, T, H, P) of S = exp(log_decay) S; S = S + k (β (v - kᵀ S))ᵀ; y = Sᵀ q; given a state, the last.

    queries, keys (B, T, G, N), each group shared by H / G neighbouring heads; values (B, T, H, P); log_decay, beta (B,
    T, H); state (B, H, N, P), or None for texts that begin here. Padding leaves the state as it is.
    """
    batch, length, heads, width = values.shape
    groups, size = keys.shape[2:]
    own = heads // groups
    text = recurrence.text(length, values)
    if text is not None:
        log_decay, beta = (torch.where(text[..., None], part, 0.0) for part in (log_decay, beta))
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:
        queries, keys, values = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (queries, keys, values))
        log_decay, beta = (F.pad(x, (0, 0, 0, missing)) for x in (log_decay, beta))
    count = (length + missing) // chunk
    # (B, G, H/G, chunks, L, …), 1 head for queries and keys
    queries, keys = (x.view(batch, count, chunk, groups, 1, size).permute(0, 3, 4, 1, 2, 5) for x in (queries, keys))
    values = values.view(batch, count, chunk, groups, own, width).permute(0, 3, 4, 1, 2, 5)
    log_decay, beta = (x.view(batch, count, chunk, groups, own).permute(0, 3, 4, 1, 2) for x in (log_decay, beta))
    decay = log_decay.cumsum(-1)
    visible = torch.ones(chunk, chunk, dtype=torch.bool, device=values.device).tril_()
    reads, writes, passes = decay, decay[..., -1:] - decay, decay[..., -1]
    if recurrence.runs is not None:
        visible, read, written, passed = (m[:, None, None] for m in visible_in_chunks(recurrence.runs, visible, count))
        reads, writes, passes = (
            x.masked_fill(~mask, float("-inf")) for x, mask in ((reads, read), (writes, written), (passes, passed))
        )
    pairs = (decay[..., :, None] - decay[..., None, :]).masked_fill(~visible, float("-inf")).exp()
    # Each correction needs those before it: (1 + strictly lower part) corrections = β values.
    system = (keys @ keys.mT) * pairs * beta[..., None]
    seen = keys * reads.exp()[..., None] * beta[..., None]
    solved = torch.linalg.solve_triangular(
        system, torch.cat((values * beta[..., None], seen), dim=-1), upper=False, unitriangular=True
    )
    new, old = solved.split((width, size), dim=-1)
    scores = (queries @ keys.mT) * pairs
    queries, keys = queries * reads.exp()[..., None], keys * writes.exp()[..., None]
    passes = passes.exp()[..., None, None]
    carried = None if state is None else state.view(batch, groups, own, size, width)
    outputs = []
    for number in range(count):
        change = new[:, :, :, number]
        if carried is not None:
            change = change - old[:, :, :, number] @ carried
        output = scores[:, :, :, number] @ change
        outputs.append(output if carried is None else output + queries[:, :, :, number] @ carried)
        if number + 1 < count or state is not None:
            written = keys[:, :, :, number].mT @ change
            carried = written if carried is None else torch.addcmul(written, carried, passes[:, :, :, number])
    output = torch.stack(outputs, dim=3).permute(0, 3, 4, 1, 2, 5).reshape(batch, count * chunk, heads, width)
    final = None if state is None or carried is None else carried.view(batch, heads, size, width)
    return output[:, :length], final
