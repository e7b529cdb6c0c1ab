"""Choosing tokens without waiting for the device: temperature, top-k, top-p, min-p and the draw, for all rows at once.

`filters` processes rows of equal parameters together and looks at results on the way, which on a GPU waits for them.
Here each parameter is a tensor with a value for each row, and the only thing that comes back is what was chosen. The
tokens are those of `filters` and `draw` with the same noise, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quatrain.generation.filters import inverted
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import SequenceState

OTHER_FILTERS = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def is_fusable(params: SamplingParams) -> bool:
    """Whether these parameters ask for no other filters and log-probabilities than `choose` gives.

    Constraints are the caller's to look for.
    """
    if params.logprobs is not None or params.logprobs_mode != "raw":
        return False
    return params.temperature == 0 or all(getattr(params, name) is None for name in OTHER_FILTERS)


def settings_of(rows: Sequence[SequenceState], vocab_size: int, device: torch.device) -> Tensor | None:
    """The parameters of rows (5, B) in float64: temperature, top-k, top-p, min-p, noise; None if all are greedy."""
    if not any(row.params.temperature for row in rows):
        return None
    columns = []
    for row in rows:
        params = row.params
        noise = row.noise(len(row.ids)) if params.temperature else 0.0
        top_k, top_p = min(params.top_k or vocab_size, vocab_size), 1.0 if params.top_p is None else params.top_p
        columns.append((params.temperature, top_k, top_p, params.min_p or 0.0, noise))
    values = torch.tensor(list(zip(*columns, strict=True)), dtype=torch.float64, pin_memory=device.type == "cuda")
    return values.to(device, non_blocking=True)


def choose(logits: Tensor, settings: Tensor | None) -> Tensor:
    """(4, B) float32: token, its log-probability under the model, log of the sum, and its processed logit.

    logits (B, V) float32; settings as `settings_of` gives them. A row of temperature 0 takes the likeliest token. The
    last three are not finite where the logits are not; the caller looks at them.
    """
    total, likeliest = logits.logsumexp(dim=-1), logits.argmax(dim=-1)
    tokens, own = likeliest, None
    if settings is not None:
        sampled = settings[0] > 0
        processed = _filtered(logits, *settings[:4])
        drawn = inverted(processed, settings[4])[0]
        tokens = torch.where(sampled, drawn, likeliest)
        own = torch.where(sampled, processed.gather(-1, tokens[:, None])[:, 0], 0.0)
    raw = logits.gather(-1, tokens[:, None])[:, 0]
    return torch.stack([tokens.float(), raw - total, total, raw if own is None else raw + own])


def _filtered(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The logits (B, V), relative to the likeliest and divided by the temperature; -inf for tokens that are dropped."""
    scaled = logits - logits.amax(dim=-1, keepdim=True)
    scaled = scaled / torch.where(temperature > 0, temperature, 1.0)[:, None].float()
    values, order = scaled.sort(dim=-1, descending=True)
    values = values.masked_fill(values < values.gather(-1, top_k.long()[:, None] - 1), float("-inf"))
    probabilities = values.softmax(dim=-1)
    # The likeliest stays: nothing is before it.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    kept &= probabilities >= min_p[:, None].float() * probabilities[:, :1]
    kept &= values > float("-inf")
    return scaled.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), float("-inf"))
