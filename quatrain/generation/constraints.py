"""Constraints on the next token that depend on the tokens so far.

Repetition penalty as in Keskar et al. 2019 (arXiv 1909.05858), no repeated n-grams as in Paulus et al. 2017
(arXiv 1705.04304), frequency and presence penalties as in OpenAI's API; the rest is needed by published checkpoints
(BART's first and last tokens are forced, Marian never generates its padding token). Meaning and order follow
transformers, except that padding never counts as a token of the text: a row gets the same completion alone and in a
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.generation.params import LogitsProcessor, SamplingParams
from quatrain.generation.vocabulary import Vocabulary

OUT = float("-inf")
PADDING = -1
"""The id at places of `DecodingState.ids` that hold no token."""


@dataclass(frozen=True)
class GenerationRules:
    """What a model's `generation_config.json` asks of every completion; `SamplingParams` can override parts of it.

    Lengths count as in transformers: `min_length` includes the prompt (encoder-decoders: the start token).
    """

    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    """The first token that an encoder-decoder generates, after its start token."""
    forced_eos_token_id: tuple[int, ...] = ()
    """The last token of a completion that reaches its length limit."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences that are never generated."""
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    """Not allowed as the first new token (the second one if the first is forced)."""
    min_length: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt (encoder-decoders: of what the encoder read) become more likely."""
    encoder_no_repeat_ngram_size: int = 0
    """No sequence of this many tokens of the prompt is repeated."""
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Added to the logit of the token that would complete each sequence."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """(start, factor): after `start` new tokens, |logit| · (factor ** tokens since - 1) is added to end tokens."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end a completion unless the caller gives others."""
    renormalize_logits: bool = False
    """Whether a beam search normalizes log-probabilities over the allowed tokens only."""


@dataclass(frozen=True)
class DecodingState:
    """The tokens of a batch when the next ones are chosen."""

    ids: Tensor
    """(B, L): prompt and new tokens of the decoder, PADDING on the left of shorter rows."""
    start: Tensor
    """(B, 1): number of tokens before the first new one."""
    limits: Tensor
    """(B, 1): the most new tokens of each row."""
    new: Tensor
    """(B, 1): number of new tokens so far."""
    source: Tensor
    """(B, S): the prompt, or what the encoder of an encoder-decoder read; PADDING on the right of shorter rows."""

    def row(self, index: int) -> DecodingState:
        """The state of one row, as a batch of one."""
        return DecodingState(*(getattr(self, field.name)[index : index + 1] for field in fields(self)))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of ids as one tensor, PADDING on the right of shorter ones."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in rows], dtype=torch.long, device=device)


Constraint = Callable[[Tensor, DecodingState], Tensor]
"""Maps logits or log-probabilities (B, V) and the state to scores (B, V); a forbidden token has -inf."""


def repetition_penalty(penalty: float) -> Constraint:
    """Lowers the scores of tokens that occurred: divides positive ones by the penalty, multiplies negative ones."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        return _rescale(scores, state.ids, state.ids[:, -1:], penalty)

    return process


def prompt_repetition_penalty(penalty: float) -> Constraint:
    """Raises the scores of tokens of the prompt: multiplies positive ones by the penalty, divides negative ones."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        return _rescale(scores, state.source, state.source[:, :1], 1 / penalty)

    return process


def _rescale(scores: Tensor, ids: Tensor, instead: Tensor, penalty: float) -> Tensor:
    """Scores whose tokens are among the ids (B, L), divided by the penalty if positive, else multiplied by it.

    `instead` (B, 1) is an id of each row that stands for its padding.
    """
    ids = ids.where((ids >= 0) & (ids < scores.shape[-1]), instead)
    own = scores.gather(1, ids)
    return scores.scatter(1, ids, torch.where(own < 0, own * penalty, own / penalty))


def count_penalties(frequency: float, presence: float) -> Constraint:
    """Subtracts `frequency` for each time, and `presence` once, that a token is among the new tokens so far."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        size, ids = scores.shape[-1], _new_tokens(state)
        known = (ids >= 0) & (ids < size)
        places = ids.where(known, 0)
        result = scores - presence * _mark(scores, ids) if presence else scores.clone()
        # Padding adds nothing, wherever it is added.
        return result.scatter_add_(1, places, known.to(scores.dtype) * -frequency)

    return process


def logit_bias(biases: Sequence[tuple[int, float]]) -> Constraint:
    """Adds a number to the logits of some tokens."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        tokens, values = zip(*biases, strict=True)
        added = torch.tensor(values, dtype=scores.dtype, device=scores.device)
        return scores.index_add(1, torch.tensor(tokens, device=scores.device), added.expand(scores.shape[0], -1))

    return process


def no_repeat_ngram(size: int) -> Constraint:
    """Forbids every token that would complete a sequence of `size` tokens for the second time."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        length = state.ids.shape[1]
        if length < size:
            return scores
        windows = state.ids.unfold(1, size, 1)  # (B, L - size + 1, size)
        tail = state.ids[:, length + 1 - size :]
        again = (windows[..., :-1] == tail[:, None]).all(dim=-1)
        return scores.masked_fill(_mark(scores, windows[..., -1].masked_fill(~again, PADDING)), OUT)

    return process


def no_repeat_prompt_ngram(size: int) -> Constraint:
    """Forbids every token that would complete a sequence of `size` tokens of the prompt."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        length = state.ids.shape[1]
        if state.source.shape[1] < size or length + 1 < size:
            return scores
        windows = state.source.unfold(1, size, 1)
        tail = state.ids[:, length + 1 - size :]
        again = (windows[..., :-1] == tail[:, None]).all(dim=-1)
        return scores.masked_fill(_mark(scores, windows[..., -1].masked_fill(~again, PADDING)), OUT)

    return process


def sequence_bias(biases: Sequence[tuple[Sequence[int], float]]) -> Constraint:
    """Adds a bias to the logit of the token that would complete each sequence."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        bias = torch.zeros_like(scores)
        for (*before, last), number in biases:
            if len(before) <= state.ids.shape[1]:
                tail = state.ids[:, state.ids.shape[1] - len(before) :]
                follows = (tail == torch.tensor(before, device=scores.device, dtype=torch.long)).all(dim=-1)
                bias[:, last] += follows * number
        return scores + bias

    return process


def exponential_decay(start: int, factor: float, ends: Tensor) -> Constraint:
    """Raises the logits of end tokens (for a factor above 1) with every new token after the first `start`."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        there = ends[ends < scores.shape[-1]]
        grown = _power(factor, (state.new - start).clamp(min=0)).to(scores.dtype)
        own = scores[:, there]
        return scores.index_add(1, there, (own.abs() * grown).masked_fill(~own.isfinite(), 0.0))

    return process


def _power(factor: float, times: Tensor) -> Tensor:
    """factor ** times - 1, capped within float32: far below the cap, only an end token is possible."""
    return (times.double() * math.log(factor)).clamp(max=60.0).exp() - 1


def bad_words(sequences: Sequence[Sequence[int]], ends: Tensor) -> Constraint:
    """Forbids the token that would complete one of these sequences; a single end token always stays possible."""
    wanted = [list(words) for words in sequences if len(words) != 1 or words[0] not in ends.tolist()]

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        scores = scores.clone()
        for *before, last in wanted:
            if len(before) > state.ids.shape[1]:
                continue
            tail = state.ids[:, state.ids.shape[1] - len(before) :]
            follows = (tail == torch.tensor(before, device=scores.device, dtype=torch.long)).all(dim=-1)
            scores[:, last] = scores[:, last].masked_fill(follows, OUT)
        return scores

    return process


def banned_texts(texts: Sequence[str], vocabulary: Vocabulary, device: torch.device) -> Constraint:
    """Forbids every token after which the completion would contain one of these texts, however it is tokenized.

    A text ends with the new token if the bytes so far end with a beginning of it and the token begins with the rest:
    one set of tokens for each place where a text can be cut.
    """
    size = len(vocabulary.pieces)
    cuts = [
        (starts, torch.tensor(tokens, device=device))
        for text in texts
        for starts, tokens in vocabulary.completing(text)
    ]
    longest = max(len(starts) for starts, _ in cuts) if cuts else 0

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        scores = scores.clone()
        for row, ids in enumerate(_new_tokens(state).tolist()):
            tail = b""
            for token in reversed(ids):
                if len(tail) >= longest or token == PADDING:
                    break
                tail = (vocabulary.pieces[token] if token < size else b"") + tail
            for starts, tokens in cuts:
                if tail.endswith(starts):
                    scores[row, tokens] = OUT
        return scores

    return process


def custom(process: LogitsProcessor) -> Constraint:
    """The caller's own function for each row, on the ids without padding and a copy of the row's logits.

    Raises InputError, with what it raised as the cause, for a function that fails or returns another shape.
    """

    def each(scores: Tensor, state: DecodingState) -> Tensor:
        rows = []
        for ids, row in zip(state.ids.tolist(), scores, strict=True):
            name = getattr(process, "__name__", type(process).__name__)
            try:
                result = process([token for token in ids if token != PADDING], row.clone())
            except Exception as error:
                raise InputError(f"logits_processors: {name} raised {type(error).__name__}: {error}") from error
            if not isinstance(result, Tensor) or result.shape != row.shape:
                got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
                raise InputError(
                    f"logits_processors: {name} returned {got}; must be logits of shape {tuple(row.shape)}"
                )
            rows.append(result.to(row))
        return torch.stack(rows)

    return each


def min_length(total: int, new: int, ends: Tensor) -> Constraint:
    """Forbids end tokens until a row has `total` tokens with its prompt and `new` ones without it."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        short = (state.start + state.new < total) | (state.new < new)
        return scores.index_fill(1, ends[ends < scores.shape[-1]], OUT).where(short, scores)

    return process


def forced_first(token: int) -> Constraint:
    """Forces this token after a single one, the start token of an encoder-decoder."""
    return lambda scores, state: _only(scores, [token], state.start + state.new == 1)


def forced_last(tokens: Sequence[int]) -> Constraint:
    """Forces one of these tokens as a row's last token."""
    return lambda scores, state: _only(scores, tokens, state.limits - 1 == state.new)


def suppress(tokens: Sequence[int], at: int | None = None) -> Constraint:
    """Forbids these tokens: always, or only as new token number `at` (from 0)."""

    def process(scores: Tensor, state: DecodingState) -> Tensor:
        without = scores.index_fill(1, torch.tensor(list(tokens), device=scores.device), OUT)
        return without if at is None else without.where(state.new == at, scores)

    return process


def constraints(
    rules: GenerationRules,
    params: SamplingParams,
    ends: Tensor,
    *,
    encoder_decoder: bool,
    vocabulary: Vocabulary | None = None,
) -> list[Constraint]:
    """The constraints that the model's rules and the parameters ask for, in transformers' order.

    `ends` are the tokens that end a completion; texts in `bad_words` need the `vocabulary`.
    """
    penalty = rules.repetition_penalty if params.repetition_penalty is None else params.repetition_penalty
    ngram = rules.no_repeat_ngram_size if params.no_repeat_ngram_size is None else params.no_repeat_ngram_size
    total, new = rules.min_length, rules.min_new_tokens
    if params.min_new_tokens is not None:
        total, new = 0, params.min_new_tokens
    chain: list[Constraint] = []
    if rules.sequence_bias:
        chain.append(sequence_bias(rules.sequence_bias))
    if params.logit_bias:
        chain.append(logit_bias(params.logit_bias))
    if rules.encoder_repetition_penalty != 1:
        chain.append(prompt_repetition_penalty(rules.encoder_repetition_penalty))
    if penalty != 1:
        chain.append(repetition_penalty(penalty))
    if params.frequency_penalty or params.presence_penalty:
        chain.append(count_penalties(params.frequency_penalty, params.presence_penalty))
    if ngram:
        chain.append(no_repeat_ngram(ngram))
    if rules.encoder_no_repeat_ngram_size:
        chain.append(no_repeat_prompt_ngram(rules.encoder_no_repeat_ngram_size))
    banned = [word for word in params.bad_words if not isinstance(word, str)]
    if rules.bad_words_ids or banned:
        chain.append(bad_words([*rules.bad_words_ids, *banned], ends))
    texts = [word for word in params.bad_words if isinstance(word, str)]
    if texts and vocabulary is not None:
        chain.append(banned_texts(texts, vocabulary, ends.device))
    if (total or new) and len(ends):
        chain.append(min_length(total, new, ends))
    if rules.forced_bos_token_id is not None:
        chain.append(forced_first(rules.forced_bos_token_id))
    if rules.forced_eos_token_id and not params.ignore_eos and not params.constrained:
        chain.append(forced_last(rules.forced_eos_token_id))
    if rules.exponential_decay_length_penalty is not None and len(ends):
        chain.append(exponential_decay(*rules.exponential_decay_length_penalty, ends))
    if rules.suppress_tokens:
        chain.append(suppress(rules.suppress_tokens))
    if rules.begin_suppress_tokens:
        forced = encoder_decoder and rules.forced_bos_token_id is not None
        chain.append(suppress(rules.begin_suppress_tokens, at=1 if forced else 0))
    chain += [custom(process) for process in params.logits_processors]
    if rules.renormalize_logits and params.num_beams > 1:
        chain.append(lambda scores, state: scores.log_softmax(dim=-1))
    return chain


def _new_tokens(state: DecodingState) -> Tensor:
    """The new tokens (B, N) of each row, PADDING on the left of rows with fewer."""
    widest = int(state.new.max()) if len(state.new) else 0
    ids = state.ids[:, state.ids.shape[1] - widest :]
    place = torch.arange(widest, 0, -1, device=ids.device)[None]
    return ids.masked_fill(place > state.new, PADDING)


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
