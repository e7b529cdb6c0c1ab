"""From logits to the next token: temperature, filters, and sampling with noise from the caller.

Temperature and top-k as in Fan et al. 2018 (arXiv 1805.04833), top-p in Holtzman et al. 2020 (arXiv 1904.09751),
min-p in Nguyen et al. 2024 (arXiv 2407.01082), locally typical sampling in Meister et al. 2022 (arXiv 2202.00666),
epsilon and eta in Hewitt et al. 2022 (arXiv 2210.15191), top-h in Baghaei Potraghloo et al. 2025 (arXiv 2509.02510).
Order and ties follow transformers: temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta, each applied to what
the one before has left. A removed token has the logit -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.params import SamplingParams

NO_TOKEN_LEFT = (
    "Every token of the vocabulary is ruled out, so nothing can be generated: suppress_tokens, bad_words_ids, "
    "no_repeat_ngram_size and min_new_tokens leave none. Take some of them out."
)

BROKEN = (
    "The model gave logits that are not finite (NaN or infinite), so nothing can be generated from it. "
    "Its weights are broken or its training diverged: use another one."
)

BLOCK = 256
"""Probabilities that are summed at once when a token is drawn."""
HEAD, SORTED = 1024, 4096
"""Top-p of a vocabulary of more than SORTED tokens orders the HEAD likeliest first."""

Processor = Callable[[Tensor], Tensor]
"""Logits (B, V) in float32 to logits (B, V)."""


def temperature(value: float) -> Processor:
    """Divides the logits: below 1 sharpens, above 1 flattens. One next to 0 leaves the likeliest tokens alone."""

    def process(logits: Tensor) -> Tensor:
        scaled, top = logits / value, logits.amax(dim=-1, keepdim=True)
        # The maximum is NaN or infinite if any token is; a token that becomes -inf has no probability in either case.
        if torch.equal(scaled.amax(dim=-1, keepdim=True).isfinite(), top.isfinite()):
            return scaled
        # Too small or too large a value for this dtype: in float64, and relative to the likeliest, nothing overflows.
        return ((logits.double() - top) / value).to(logits.dtype)

    return process


def top_k(count: int) -> Processor:
    """Drops every token less likely than the count-th likeliest."""

    def process(logits: Tensor) -> Tensor:
        smallest = torch.topk(logits, min(count, logits.shape[-1]), dim=-1).values[..., -1:]
        return logits.masked_fill(logits < smallest, float("-inf"))

    return process


def top_p(share: float) -> Processor:
    """Drops the unlikely tail: the smallest set of likeliest tokens with at least `share` of the probability stays."""

    def process(logits: Tensor) -> Tensor:
        if logits.shape[-1] <= SORTED:
            return _sorted_top_p(logits, share)
        # Sorting a large vocabulary costs more than a step of a small model; its head nearly always suffices.
        head, order = logits.softmax(dim=-1).topk(HEAD, dim=-1)
        kept = head.cumsum(dim=-1) - head < share
        result = torch.full_like(logits, float("-inf"))
        result.scatter_(-1, order, logits.gather(-1, order).masked_fill(~kept, float("-inf")))
        # A margin for rounding, so that each row alone decides which way it goes.
        flat = (head.sum(dim=-1) <= share + 1e-5).nonzero()[:, 0]
        if len(flat):
            result[flat] = _sorted_top_p(logits[flat], share)
        return result

    return process


def _sorted_top_p(logits: Tensor, share: float) -> Tensor:
    ascending, order = torch.sort(logits, dim=-1)
    out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - share
    out[..., -1] = False
    return logits.masked_fill(out.scatter(-1, order, out), float("-inf"))


def min_p(share: float) -> Processor:
    """Drops every token less than `share` times as likely as the likeliest."""

    def process(logits: Tensor) -> Tensor:
        probabilities = logits.softmax(dim=-1)
        return logits.masked_fill(probabilities < share * probabilities.amax(dim=-1, keepdim=True), float("-inf"))

    return process


def typical(mass: float) -> Processor:
    """Drops what is least typical: tokens whose surprise is far from the entropy, once the others have `mass`."""

    def process(logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(dim=-1)
        entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
        distance, order = torch.sort((-logprobs - entropy).abs(), dim=-1)
        reached = (logits.gather(-1, order).softmax(dim=-1).cumsum(dim=-1) < mass).sum(dim=-1, keepdim=True)
        out = distance > distance.gather(-1, reached.clamp(max=logits.shape[-1] - 1))
        out[..., 0] = False
        return logits.masked_fill(out.scatter(-1, order, out), float("-inf"))

    return process


def epsilon(cutoff: float) -> Processor:
    """Drops every token of less than `cutoff` probability, the likeliest apart."""

    def process(logits: Tensor) -> Tensor:
        out = (logits.softmax(dim=-1) < cutoff) & (logits < logits.amax(dim=-1, keepdim=True))
        return logits.masked_fill(out, float("-inf"))

    return process


def eta(cutoff: float) -> Processor:
    """Drops tokens below `cutoff`, or below √cutoff · e^-entropy where that is less, the likeliest apart."""

    def process(logits: Tensor) -> Tensor:
        bound = torch.tensor(cutoff, device=logits.device)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        least = torch.min(bound, bound.sqrt() * torch.exp(-entropy))[..., None]
        out = (logits.softmax(dim=-1) < least) & (logits < logits.amax(dim=-1, keepdim=True))
        return logits.masked_fill(out, float("-inf"))

    return process


def top_h(share: float) -> Processor:
    """Keeps the likeliest of the first 100 tokens whose entropy terms sum to at most `share` of their entropy."""

    def process(logits: Tensor) -> Tensor:
        likeliest, places = torch.topk(logits, min(100, logits.shape[-1]), dim=-1)
        found = torch.distributions.Categorical(logits=likeliest)
        # From the first token without any probability on the terms are NaN, and NaN <= x keeps none.
        terms = -found.probs * found.probs.log()
        keep = terms.cumsum(dim=-1) <= (found.entropy() * share).unsqueeze(-1)
        keep[..., 0] = True
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, keep)
        return logits.masked_fill(~kept, float("-inf"))

    return process


def processors(params: SamplingParams) -> list[Processor]:
    """The processors that these parameters ask for, in transformers' order; none for greedy decoding."""
    if params.temperature == 0:
        return []
    chain: list[Processor] = []
    if params.temperature != 1:
        chain.append(temperature(params.temperature))
    if params.top_h is not None:
        chain.append(top_h(params.top_h))
    if params.top_k is not None:
        chain.append(top_k(params.top_k))
    if params.top_p is not None and params.top_p < 1:
        chain.append(top_p(params.top_p))
    if params.min_p:
        chain.append(min_p(params.min_p))
    if params.typical_p is not None and params.typical_p < 1:
        chain.append(typical(params.typical_p))
    if params.epsilon_cutoff and params.epsilon_cutoff < 1:
        chain.append(epsilon(params.epsilon_cutoff))
    if params.eta_cutoff and params.eta_cutoff < 1:
        chain.append(eta(params.eta_cutoff))
    return chain


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token per row, by inverting the cumulative distribution: logits (B, V), uniform (B,) in [0, 1) -> (B,).

    One number of noise decides one row, so that a row's draw depends on its own noise alone. Blocks of probabilities
    are summed in float64, and only the one into which the draw falls is searched token by token. Raises InputError
    where a row has no token left, QuatrainError for logits that are NaN or +inf.
    """
    result, total = inverted(logits, uniform)
    if not bool(total.isfinite().all()):
        if bool(logits.isneginf().all(dim=-1).any()):
            raise InputError(NO_TOKEN_LEFT)
        raise QuatrainError(BROKEN)
    return result


def inverted(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`draw` without a look at its result: the tokens (B,), and the sums of all probabilities (B,) in float64.

    Where a sum is not finite, the row has no distribution and its token means nothing.
    """
    probabilities, size = logits.float().softmax(dim=-1), logits.shape[1]
    whole = size - size % BLOCK
    sums = probabilities[:, :whole].unflatten(1, (whole // BLOCK, BLOCK)).sum(dim=-1, dtype=torch.float64)
    rest = probabilities[:, whole:].sum(dim=-1, keepdim=True, dtype=torch.float64)
    sums = torch.cat([sums, rest], dim=1).cumsum(dim=-1)
    target = uniform.to(torch.float64)[:, None] * sums[:, -1:]
    block = _first_above(sums, target)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    chosen = probabilities.gather(1, places.clamp(max=size - 1)).double().masked_fill(places >= size, 0.0)
    return (block * BLOCK + _first_above(chosen.cumsum(dim=-1), target - before))[:, 0], sums[:, -1]


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first place (B, 1) whose sum exceeds the target, thus of probability above 0; the last such for a target that
    rounding has put at the total.
    """
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
