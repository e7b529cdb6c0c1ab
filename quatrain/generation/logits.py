"""From logits to the next token: temperature, top-k, top-p, min-p, and a draw whose noise the caller owns.

Temperature and top-k as in Fan et al. 2018 (arXiv 1805.04833), top-p in Holtzman et al. 2020 (arXiv 1904.09751),
min-p in Nguyen et al. 2024 (arXiv 2407.01082). Order and ties follow transformers: temperature, top-k, top-p, min-p,
each on what the one before has left; a token that is out has the logit -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.errors import InputError

Processor = Callable[[Tensor], Tensor]
"""Logits (B, V) in float32 to logits (B, V)."""


@dataclass(frozen=True)
class SamplingParams:
    """How a completion is drawn. Raises InputError, all problems at once, for values out of range."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token each time (greedy); 1 draws from the model's own distribution."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p."""
    min_p: float | None = None
    """Keep the tokens at least min_p times as likely as the likeliest."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are not part of its text."""
    seed: int | None = None
    """Same seed and prompt, same completion, whatever else is in the batch. None draws a new seed each call."""
    ignore_eos: bool = False
    """Go on after an end token, up to max_new_tokens (for measuring speed)."""
    num_beams: int = 1
    """Beam search with so many beams, for the likeliest completion as a whole; 1 does without."""
    length_penalty: float = 1.0
    """Beams are compared by log-probability / length ** length_penalty: above 0 favours long ones, below short ones."""
    early_stopping: bool | Literal["never"] = False
    """When beams stop: True once num_beams hypotheses have ended, False once none of the current length could be
    better, "never" once none of any length could."""
    num_return_sequences: int = 1
    """How many hypotheses of a beam search to give: the best, and the next best as its alternatives."""
    min_new_tokens: int | None = None
    """No end token before so many new tokens. None: what the model's own settings ask for; so in the next two."""
    no_repeat_ngram_size: int | None = None
    """No sequence of so many tokens is said twice, the prompt's included (encoder-decoders: without it); 0: any may."""
    repetition_penalty: float | None = None
    """Above 1, tokens that were said before become less likely (their logit is divided by it); 1 changes nothing."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        problems = [*self._beam_problems(), *self._constraint_problems()]
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens: {self.max_new_tokens}; must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature: {self.temperature}; must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k: {self.top_k}; must be at least 1; leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p: {self.top_p}; must be above 0 and at most 1; leave it out to keep every token")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            problems.append(f"min_p: {self.min_p}; must be between 0 and 1; leave it out to keep every token")
        if any(not text for text in stop):
            problems.append("stop: an empty string would end every completion at once; remove it")
        if problems:
            raise InputError("These sampling parameters cannot be used:", problems)

    def _beam_problems(self) -> Iterator[str]:
        if not _whole(self.num_beams, 1):
            yield f"num_beams: {self.num_beams!r}; must be a whole number of at least 1"
        elif self.num_beams > 1:
            asked = {"temperature": self.temperature or None, "top_k": self.top_k}
            asked |= {"top_p": self.top_p, "min_p": self.min_p}
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
        elif self.min_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            yield f"min_new_tokens: {self.min_new_tokens}; must be at most max_new_tokens ({self.max_new_tokens})"
        if self.no_repeat_ngram_size is not None and not _whole(self.no_repeat_ngram_size, 0):
            yield f"no_repeat_ngram_size: {self.no_repeat_ngram_size!r}; must be a whole number of at least 0"
        penalty = self.repetition_penalty
        if penalty is not None and not (_number(penalty) and 0 < penalty < float("inf")):
            yield f"repetition_penalty: {penalty!r}; must be a positive number; 1 changes nothing"


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def temperature(value: float) -> Processor:
    """Divides the logits: below 1 sharpens, above 1 flattens."""
    return lambda logits: logits / value


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


def processors(params: SamplingParams) -> list[Processor]:
    """The processors that these parameters ask for, in transformers' order; none for greedy decoding."""
    if params.temperature == 0:
        return []
    chain: list[Processor] = []
    if params.temperature != 1:
        chain.append(temperature(params.temperature))
    if params.top_k is not None:
        chain.append(top_k(params.top_k))
    if params.top_p is not None and params.top_p < 1:
        chain.append(top_p(params.top_p))
    if params.min_p:
        chain.append(min_p(params.min_p))
    return chain


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token per row, by inverting the cumulative distribution: logits (B, V), uniform (B,) in [0, 1) -> (B,).

    One number of noise decides one row, so that a row's draw depends on its own noise alone.
    """
    cumulative = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform.to(torch.float64)[:, None] * cumulative[:, -1:]
    # right=True: the first token whose cumulative probability exceeds the target, which thus has probability > 0.
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)
