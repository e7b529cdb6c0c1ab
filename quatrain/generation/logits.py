"""From logits to the next token: temperature, filters, and sampling with noise that the caller owns.

Temperature and top-k as in Fan et al. 2018 (arXiv 1805.04833), top-p in Holtzman et al. 2020 (arXiv 1904.09751),
min-p in Nguyen et al. 2024 (arXiv 2407.01082), locally typical sampling in Meister et al. 2022 (arXiv 2202.00666),
epsilon and eta in Hewitt et al. 2022 (arXiv 2210.15191), top-h in Baghaei Potraghloo et al. 2025 (arXiv 2509.02510).
Order and ties follow transformers: temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta, each applied to what
the one before has left. A removed token has the logit -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.reading import shown

MIN_REPETITION_PENALTY = 1e-6
"""A repetition penalty below it, or above its inverse, would drive logits out of float32."""

NO_TOKEN_LEFT = (
    "Every token of the vocabulary is ruled out, so nothing can be generated: suppress_tokens, bad_words_ids, "
    "no_repeat_ngram_size and min_new_tokens leave none. Take some of them out."
)

BROKEN = (
    "The model gave logits that are not finite (NaN or infinite), so nothing can be generated from it. "
    "Its weights are broken or its training diverged: use another one."
)

_SHARES = {
    **{"top_p": False, "min_p": True, "typical_p": False},
    **{"epsilon_cutoff": True, "eta_cutoff": True, "top_h": False},
}
"""Filters that keep a share between 0 and 1, and whether 0 is allowed."""

Processor = Callable[[Tensor], Tensor]
"""Logits (B, V) in float32 to logits (B, V)."""


@dataclass(frozen=True)
class SamplingParams:
    """How a completion is generated. Raises InputError, all problems at once, for values out of range."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 always takes the likeliest token (greedy decoding); 1 samples from the model's own distribution."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p."""
    min_p: float | None = None
    """Keep the tokens that are at least min_p times as likely as the likeliest."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion and are not part of its text. Empty: the model's own stop strings."""
    seed: int | None = None
    """The same seed and prompt give the same completion, whatever else is in the batch. None: a new seed each call."""
    ignore_eos: bool = False
    """Continue after an end token, up to max_new_tokens (to measure speed)."""
    num_beams: int = 1
    """Number of beams of a beam search; 1: no beam search."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / length ** length_penalty: above 0 favours long ones, below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search stops: True once num_beams hypotheses have ended, False once no beam of the current length can
    beat them, "never" once no beam of any length can."""
    num_return_sequences: int = 1
    """How many hypotheses a beam search returns: the best one, and the next best as its `alternatives`."""
    min_new_tokens: int | None = None
    """No end token before this many new tokens. None (here and in the next two): the model's own setting."""
    no_repeat_ngram_size: int | None = None
    """No sequence of this many tokens occurs twice, prompt included (encoder-decoders: excluded); 0: no rule."""
    repetition_penalty: float | None = None
    """Divides (negative: multiplies) the logits of tokens that already occurred; 1: no penalty."""
    typical_p: float | None = None
    """Keep the tokens whose information is nearest to the distribution's entropy, until they have this probability."""
    epsilon_cutoff: float | None = None
    """Keep the tokens with at least this probability; 0 keeps every token."""
    eta_cutoff: float | None = None
    """Keep the tokens with at least min(eta, √eta · e^-entropy) probability; 0 keeps every token."""
    top_h: float | None = None
    """Keep the likeliest of the first 100 tokens until they have this share of the entropy."""

    def __post_init__(self) -> None:
        given: Any = self.stop
        stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (given,)
        object.__setattr__(self, "stop", stop)
        problems = [*self._beam_problems(), *self._constraint_problems(), *self._filter_problems()]
        if not _whole(self.max_new_tokens, 1):
            problems.append(f"max_new_tokens: {shown(self.max_new_tokens)}; must be at least 1, a whole number")
        if not _number(self.temperature) or not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature: {shown(self.temperature)}; must be 0 (greedy) or a positive number")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            problems.append(f"seed: {shown(self.seed)}; must be a whole number")
        if not isinstance(self.ignore_eos, bool):
            problems.append(f"ignore_eos: {shown(self.ignore_eos)}; must be true or false")
        if any(text == "" for text in stop):
            problems.append("stop: an empty string would end every completion at once; remove it")
        problems += [f"stop: {shown(text)}; must be a text" for text in stop if not isinstance(text, str)]
        if problems:
            raise InputError("These sampling parameters cannot be used:", problems)

    def _filter_problems(self) -> Iterator[str]:
        if self.top_k is not None and not _whole(self.top_k, 1):
            yield f"top_k: {shown(self.top_k)}; must be at least 1, a whole number; leave it out to keep every token"
        for name, includes_0 in _SHARES.items():
            value = getattr(self, name)
            if value is None or (_number(value) and (0 < value <= 1 or (includes_0 and value == 0))):
                continue
            bounds = "between 0 and 1" if includes_0 else "above 0 and at most 1"
            yield f"{name}: {shown(value)}; must be {bounds}; leave it out to keep every token"

    def _beam_problems(self) -> Iterator[str]:
        if not _whole(self.num_beams, 1):
            yield f"num_beams: {shown(self.num_beams)}; must be a whole number of at least 1"
        elif self.num_beams > 1:
            asked = {"temperature": self.temperature or None, "top_k": self.top_k}
            asked |= {name: getattr(self, name) for name in _SHARES}
            for name, value in asked.items():
                if value is not None:
                    yield (
                        f"{name}: {value}; beam search (num_beams: {self.num_beams}) takes the likeliest and does not "
                        f"draw; leave {name} out, or num_beams"
                    )
        if not _number(self.length_penalty) or not -10 <= self.length_penalty <= 10:
            yield f"length_penalty: {self.length_penalty!r}; must be a number between -10 and 10"
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            yield f'early_stopping: {self.early_stopping!r}; must be true, false or "never"'
        if not _whole(self.num_return_sequences, 1):
            yield f"num_return_sequences: {self.num_return_sequences!r}; must be a whole number of at least 1"
        elif _whole(self.num_beams, 1) and self.num_return_sequences > self.num_beams:
            yield (
                f"num_return_sequences: {self.num_return_sequences}; must be at most num_beams ({self.num_beams}); for "
                "several samples give the prompt several times"
            )

    def _constraint_problems(self) -> Iterator[str]:
        if self.min_new_tokens is not None and not _whole(self.min_new_tokens, 0):
            yield f"min_new_tokens: {self.min_new_tokens!r}; must be a whole number of at least 0"
        elif (
            self.min_new_tokens is not None
            and _whole(self.max_new_tokens, 1)
            and self.min_new_tokens > self.max_new_tokens
        ):
            yield f"min_new_tokens: {self.min_new_tokens}; must be at most max_new_tokens ({self.max_new_tokens})"
        if self.no_repeat_ngram_size is not None and not _whole(self.no_repeat_ngram_size, 0):
            yield f"no_repeat_ngram_size: {self.no_repeat_ngram_size!r}; must be a whole number of at least 0"
        penalty = self.repetition_penalty
        least, most = MIN_REPETITION_PENALTY, 1 / MIN_REPETITION_PENALTY
        if penalty is not None and not (_number(penalty) and least <= penalty <= most):
            yield (
                f"repetition_penalty: {shown(penalty)}; must be a positive number from {MIN_REPETITION_PENALTY:g} to "
                f"{1 / MIN_REPETITION_PENALTY:g}; 1 changes nothing"
            )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def temperature(value: float) -> Processor:
    """Divides the logits: below 1 sharpens, above 1 flattens. One next to 0 leaves the likeliest tokens alone."""

    def process(logits: Tensor) -> Tensor:
        scaled = logits / value
        if torch.equal(scaled.isfinite(), logits.isfinite()) and not bool(scaled.isnan().any()):
            return scaled
        # Too small or too large a value for this dtype: in float64, and relative to the likeliest, nothing overflows.
        top = logits.amax(dim=-1, keepdim=True)
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
        ascending, order = torch.sort(logits, dim=-1)
        out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - share
        out[..., -1] = False
        return logits.masked_fill(out.scatter(-1, order, out), float("-inf"))

    return process


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

    One number of noise decides one row, so that a row's draw depends on its own noise alone. Raises InputError where a
    row has no token left, QuatrainError for logits that are NaN or +inf.
    """
    cumulative = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    if not bool(cumulative[:, -1].isfinite().all()):
        if bool(logits.isneginf().all(dim=-1).any()):
            raise InputError(NO_TOKEN_LEFT)
        raise QuatrainError(BROKEN)
    target = uniform.to(torch.float64)[:, None] * cumulative[:, -1:]
    # right=True: the first token whose cumulative probability exceeds the target, which thus has probability > 0.
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)
