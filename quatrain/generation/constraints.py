"""What a completion may not say, or must: rules on the next token that look at what was said before.

Repetition penalty as in Keskar et al. 2019 (arXiv 1909.05858), no repeated n-grams as in Paulus et al. 2017
(arXiv 1705.04304); the rest are the needs of published checkpoints (BART begins and ends with forced tokens, Marian
never says its padding). Meaning and order follow transformers, except that padding never counts as something said: a
row gets the same completion alone and in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.generation.logits import SamplingParams

OUT = float("-inf")
PADDING = -1
"""The id that stands where a row of `Said` has nothing."""


@dataclass(frozen=True)
class Rules:
    """What a model's own `generation_config.json` asks of every completion; `SamplingParams` may say otherwise.

    Lengths count as transformers counts them: `min_length` with the prompt (encoder-decoders: with the start token).
    """

    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    """What an encoder-decoder says first, after its start token."""
    forced_eos_token_id: tuple[int, ...] = ()
    """What stands last where the length runs out."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences that are never said."""
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    """Not said as the first new token (the second where one is forced)."""
    min_length: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """What is added to the logit of the token that would complete a sequence."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """From so many new tokens on, end tokens become likelier: |logit| · (factor ** tokens since - 1) is added."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end a completion unless the caller gives others."""
    renormalize_logits: bool = False
    """Whether beams count log-probabilities among the allowed tokens only."""


@dataclass(frozen=True)
class Said:
    """What the rows of a batch hold when a token is chosen."""

    ids: Tensor
    """(B, L): what the decoder has read and will have read, PADDING on the left where a row is shorter."""
    start: Tensor
    """(B, 1): how many of them stood there before the first new token."""
    limits: Tensor
    """(B, 1): the most new tokens of each row."""
    new: int
    """How many are new; the same in every row."""


Constraint = Callable[[Tensor, Said], Tensor]
"""Logits or log-probabilities (B, V) and what was said to scores (B, V); a token that is out has -inf."""


def repetition_penalty(penalty: float) -> Constraint:
    """Makes what was said before less likely: positive scores are divided by the penalty, negative ones multiplied."""

    def process(scores: Tensor, said: Said) -> Tensor:
        known = _mark(scores, said.ids)
        return torch.where(known, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    return process


def no_repeat_ngram(size: int) -> Constraint:
    """Drops every token that would say a sequence of `size` tokens a second time."""

    def process(scores: Tensor, said: Said) -> Tensor:
        length = said.ids.shape[1]
        if length < size:
            return scores
        windows = said.ids.unfold(1, size, 1)  # (B, L - size + 1, size)
        tail = said.ids[:, length + 1 - size :]
        again = (windows[..., :-1] == tail[:, None]).all(dim=-1)
        return scores.masked_fill(_mark(scores, windows[..., -1].masked_fill(~again, PADDING)), OUT)

    return process


def sequence_bias(biases: Sequence[tuple[Sequence[int], float]]) -> Constraint:
    """Adds a number to the logit of the token that would complete each sequence."""

    def process(scores: Tensor, said: Said) -> Tensor:
        bias = torch.zeros_like(scores)
        for (*before, last), number in biases:
            if len(before) <= said.ids.shape[1]:
                tail = said.ids[:, said.ids.shape[1] - len(before) :]
                follows = (tail == torch.tensor(before, device=scores.device, dtype=torch.long)).all(dim=-1)
                bias[:, last] += follows * number
        return scores + bias

    return process


def exponential_decay(start: int, factor: float, ends: Tensor) -> Constraint:
    """Makes end tokens likelier (a factor above 1) with every new token from number `start` on."""

    def process(scores: Tensor, said: Said) -> Tensor:
        if said.new <= start:
            return scores
        there = ends[ends < scores.shape[-1]]
        grown = _power(factor, said.new - start)
        own = scores[:, there]
        return scores.index_add(1, there, (own.abs() * grown).masked_fill(~own.isfinite(), 0.0))

    return process


def _power(factor: float, times: int) -> float:
    """factor ** times - 1, no more than float32 holds with any logit: nothing but an end is possible by then."""
    return math.exp(min(times * math.log(factor), 60.0)) - 1


def bad_words(sequences: Sequence[Sequence[int]], ends: Tensor) -> Constraint:
    """Drops the token that would complete one of these sequences; an end token alone always stays possible."""
    wanted = [list(words) for words in sequences if len(words) != 1 or words[0] not in ends.tolist()]

    def process(scores: Tensor, said: Said) -> Tensor:
        scores = scores.clone()
        for *before, last in wanted:
            if len(before) > said.ids.shape[1]:
                continue
            tail = said.ids[:, said.ids.shape[1] - len(before) :]
            follows = (tail == torch.tensor(before, device=scores.device, dtype=torch.long)).all(dim=-1)
            scores[:, last] = scores[:, last].masked_fill(follows, OUT)
        return scores

    return process


def min_length(total: int, new: int, ends: Tensor) -> Constraint:
    """Drops the end tokens before a row has `total` tokens, its prompt included, and `new` ones without it."""

    def process(scores: Tensor, said: Said) -> Tensor:
        short = (said.start + said.new < total) | (said.new < new)
        return scores.index_fill(1, ends[ends < scores.shape[-1]], OUT).where(short, scores)

    return process


def forced_first(token: int) -> Constraint:
    """Allows nothing else after a single token, the start token of an encoder-decoder."""
    return lambda scores, said: _only(scores, [token], said.start + said.new == 1)


def forced_last(tokens: Sequence[int]) -> Constraint:
    """Allows nothing else as a row's last token."""
    return lambda scores, said: _only(scores, tokens, said.limits - 1 == said.new)


def suppress(tokens: Sequence[int], at: int | None = None) -> Constraint:
    """Drops these tokens: always, or only as the new token number `at` (from 0)."""

    def process(scores: Tensor, said: Said) -> Tensor:
        if at is not None and said.new != at:
            return scores
        return scores.index_fill(1, torch.tensor(list(tokens), device=scores.device), OUT)

    return process


def constraints(rules: Rules, params: SamplingParams, ends: Tensor, *, encoder_decoder: bool) -> list[Constraint]:
    """The constraints that the model's rules and these parameters ask for, in transformers' order."""
    penalty = rules.repetition_penalty if params.repetition_penalty is None else params.repetition_penalty
    ngram = rules.no_repeat_ngram_size if params.no_repeat_ngram_size is None else params.no_repeat_ngram_size
    total, new = rules.min_length, rules.min_new_tokens
    if params.min_new_tokens is not None:
        total, new = 0, params.min_new_tokens
    chain: list[Constraint] = []
    if rules.sequence_bias:
        chain.append(sequence_bias(rules.sequence_bias))
    if penalty != 1:
        chain.append(repetition_penalty(penalty))
    if ngram:
        chain.append(no_repeat_ngram(ngram))
    if rules.bad_words_ids:
        chain.append(bad_words(rules.bad_words_ids, ends))
    if (total or new) and len(ends):
        chain.append(min_length(total, new, ends))
    if rules.forced_bos_token_id is not None:
        chain.append(forced_first(rules.forced_bos_token_id))
    if rules.forced_eos_token_id and not params.ignore_eos:
        chain.append(forced_last(rules.forced_eos_token_id))
    if rules.exponential_decay_length_penalty is not None and len(ends):
        chain.append(exponential_decay(*rules.exponential_decay_length_penalty, ends))
    if rules.suppress_tokens:
        chain.append(suppress(rules.suppress_tokens))
    if rules.begin_suppress_tokens:
        forced = encoder_decoder and rules.forced_bos_token_id is not None
        chain.append(suppress(rules.begin_suppress_tokens, at=1 if forced else 0))
    if rules.renormalize_logits and params.num_beams > 1:
        chain.append(lambda scores, said: scores.log_softmax(dim=-1))
    return chain


def _mark(scores: Tensor, ids: Tensor) -> Tensor:
    """Which tokens of the vocabulary are among a row's ids (B, L): (B, V); PADDING marks none."""
    size = scores.shape[-1]
    marked = torch.zeros(scores.shape[0], size + 1, dtype=torch.bool, device=scores.device)
    # One column more than the vocabulary takes what is no token of it.
    return marked.scatter_(1, ids.masked_fill((ids < 0) | (ids >= size), size), True)[:, :size]


def _only(scores: Tensor, tokens: Sequence[int], where: Tensor) -> Tensor:
    """Score 0 for these tokens and -inf for all others in the rows where `where` (B, 1) holds."""
    forced = torch.full_like(scores, OUT)
    forced[:, list(tokens)] = 0
    return torch.where(where, forced, scores)
