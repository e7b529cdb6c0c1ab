"""mLSTM, the layer of xLSTM (Beck et al. 2024, arXiv 2405.04517; xLSTM 7B, arXiv 2503.13427).

Each head keeps a matrix C and a normalizer n: C[t] = f C[t-1] + i k vᵀ, n[t] = f n[t-1] + i k and
h = qᵀ C / max(|qᵀ n|, 1). The gates f = sigmoid and i = exp depend on the token. As exp may be large, both are divided
by exp(m), where m[t] = max(log f + m[t-1], log i). With f' = f exp(m[t-1] - m[t]) and i' = exp(log i - m[t]) the layer
is a scan like that of Mamba 2, in which n is one more channel of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import ForwardContext
from quatrain.models.transformer.recurrence import Recurrence, scan, step

FORGET_BIAS = 3.0, 6.0
"""The bias of the forget gate of the first and the last head, at the start of training."""
EPSILON = 1e-6
"""Added to the normalizer."""


class ForgetGate(nn.Linear):
    """A projection that begins with heads of different memory, all longer than a few tokens."""

    def initial(self, leaf: str, generator: torch.Generator) -> Tensor | None:
        """The initial bias."""
        return torch.linspace(*FORGET_BIAS, self.out_features) if leaf == "bias" else None


class MLSTM(nn.Module):
    """The mixer of xLSTM: (B, T, hidden_size) to the same."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.cap, self.eps = layer, config.recurrent_gate_softcap, config.norm_eps
        self.heads, self.width, self.size = (
            config.recurrent_heads, config.recurrent_head_dim, config.recurrent_state_size
        )  # fmt: skip
        hidden, inner = config.hidden_size, self.heads * self.width
        self.q_proj = nn.Linear(hidden, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(hidden, self.heads * self.size, bias=False)
        self.v_proj = nn.Linear(hidden, inner, bias=False)
        self.output_gate = nn.Linear(hidden, inner, bias=False)
        self.input_gate = nn.Linear(hidden, self.heads)
        self.forget_gate = ForgetGate(hidden, self.heads)
        self.norm_weight = nn.Parameter(torch.ones(inner))
        """Scale of the norm over each head."""
        self.o_proj = nn.Linear(inner, hidden, bias=False)

    def initial(self, leaf: str, generator: torch.Generator) -> Tensor | None:
        """The initial value of a parameter that is no projection."""
        return torch.ones(self.heads * self.width) if leaf == "norm_weight" else None

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        recurrence, memory, before = context.recurrence, None, None
        if context.cache is not None:
            memory, before = context.cache.recurrent_state(self.layer)
        x = recurrence.gather(x)
        queries, keys = (proj(x).float().unflatten(-1, (self.heads, self.size)) for proj in (self.q_proj, self.k_proj))
        values = self.v_proj(x).float().unflatten(-1, (self.heads, self.width))
        queries = queries * self.size**-0.5
        write, keep = self._capped(self.input_gate(x)), F.logsigmoid(self._capped(self.forget_gate(x)))
        text = recurrence.text(x.shape[1], x)
        if text is not None:
            write = torch.where(text[..., None], write, float("-inf"))
            keep = torch.where(text[..., None], keep, 0.0)
        largest, previous = running_maximum(write, keep, before, recurrence)
        decay, share = keep + (previous - largest), (write - largest).exp()
        values = F.pad(values, (0, 1), value=1.0) * share[..., None]
        if memory is not None and x.shape[1] == 1 and recurrence.runs is None:
            output, memory = step(queries[:, 0], keys[:, 0], values[:, 0], decay[:, 0], memory)
            output = output[:, None]
        else:
            output, memory = scan(queries, keys, values, decay, memory, recurrence)
        if context.cache is not None and memory is not None:
            context.cache.store_recurrent_state(self.layer, (memory, largest[:, -1]))
        output, normalizer = output[..., :-1], output[..., -1:]
        output = output / (torch.maximum(normalizer.abs(), (-largest).exp()[..., None]) + EPSILON)
        output = F.layer_norm(output, (self.width,), eps=self.eps).flatten(2).to(x.dtype) * self.norm_weight.to(x.dtype)
        return recurrence.scatter(self.o_proj(output * self.output_gate(x).sigmoid()))

    def _capped(self, gate: Tensor) -> Tensor:
        gate = gate.float()
        return gate if self.cap is None else torch.tanh(gate / self.cap) * self.cap


def running_maximum(
    write: Tensor, keep: Tensor, before: Tensor | None, recurrence: Recurrence
) -> tuple[Tensor, Tensor]:
    """m[t] = max(keep[t] + m[t-1], write[t]) and m[t-1], both (B, T, H); `before` (B, H) is m before the first token.

    A text begins with 0. Computed as S[t] + max over s <= t of write[s] - S[s] with the sums S of `keep`, in float64:
    over a long text the sums are much larger than m.
    """
    batch, length, heads = write.shape
    if length == 1 and recurrence.runs is None:
        before = write.new_zeros(batch, heads) if before is None else before
        return torch.maximum(keep + before[:, None], write), before[:, None]
    first = write.new_zeros(batch, 1, heads) if before is None else before[:, None]
    candidates, sums = write.double(), keep.double().cumsum(1)
    starts = None
    if recurrence.runs is not None:
        starts = (recurrence.runs != F.pad(recurrence.runs[:, :-1], (1, 0)))[..., None]
        candidates = torch.where(starts, torch.maximum(candidates, keep.double()), candidates)
    candidates = candidates - sums
    offset = None
    if recurrence.runs is not None:  # A text exceeds all texts before it.
        finite = candidates.detach().masked_fill(candidates.isinf(), 0.0)
        spread = finite.abs().amax() + first.abs().amax() + 1
        offset = 2 * spread * recurrence.runs[..., None]
        candidates = candidates + offset
    highest = torch.maximum(candidates.cummax(1).values, first.double())
    largest = (sums + (highest if offset is None else highest - offset)).float()
    previous = torch.cat((first, largest[:, :-1]), dim=1)
    return largest, previous if starts is None else torch.where(starts, 0.0, previous)
