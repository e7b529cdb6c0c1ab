"""Greedy decoding and sampling of a batch: one token per sequence and step.

Finished sequences leave the batch once there are enough of them to repay the copy of the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.cached_model import CachedModel
from quatrain.generation.constraints import Constraint, DecodingState
from quatrain.generation.logits import BROKEN, NO_TOKEN_LEFT, SamplingParams, draw, processors
from quatrain.models.transformer.stack import Model

SHRINK_AT = 0.75
"""The batch shrinks to its unfinished rows once they are at most this share of it."""


@dataclass
class SequenceState:
    """One completion while it is generated: at most `limit` new tokens, sampled with noise from `seed`."""

    prompt: list[int]
    limit: int
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each id under the model itself, before temperature and all processors; in nats."""
    finished: str | None = None
    """"stop" or "length" once the completion is finished."""
    ended: bool = False
    """Whether the last id is an end token, which is not part of the text."""
    adapter: str | None = None
    """The adapter that the sequence uses, of a model with several."""
    score: float | None = None
    """Beam search only: sum of the log-probabilities after constraints / length ** length_penalty."""
    alternatives: list[SequenceState] = field(default_factory=list)
    """Beam search only: the next best hypotheses, best first."""


def row_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """A seed for each prompt, from the call's seed, the prompt's ids and the number of equal prompts before it.

    A completion then depends neither on the other prompts nor on its place among them, and equal prompts get different
    completions.
    """
    seen: dict[bytes, int] = {}
    seeds = []
    for prompt in prompts:
        key = hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=16).digest()
        count = seen.get(key, 0)
        seen[key] = count + 1
        digest = hashlib.blake2b(key + count.to_bytes(8, "little"), digest_size=8).digest()
        seeds.append(int.from_bytes(digest, "little") >> 1)
    return seeds


def adapters_of(model: Model, sequences: Sequence[SequenceState]) -> list[str | None] | None:
    """The adapter of each sequence; None for a model without an adapter set."""
    return None if model.adapter_set is None else [sequence.adapter for sequence in sequences]


class Decoding:
    """Generates a batch of sequences: each `step` adds one token to every unfinished one."""

    def __init__(
        self,
        model: Model,
        sequences: Sequence[SequenceState],
        params: SamplingParams,
        end_ids: Tensor,
        *,
        constraints: Sequence[Constraint] = (),
        start_id: int | None = None,
    ):
        self.params, self.end_ids = params, end_ids
        self.rows = list(sequences)
        """The sequence of each row of the batch; finished ones are included until they leave."""
        self.processors, self.constraints = processors(params), list(constraints)
        new = max(row.limit for row in self.rows)
        self.model = CachedModel(model, [row.prompt for row in self.rows], new, start_id, adapters_of(model, self.rows))
        self.device = self.model.device
        self.limits = torch.tensor([[row.limit] for row in self.rows], device=self.device)
        self.noise = self._noise(new) if params.temperature else None
        self.tokens = torch.empty(len(self.rows), 0, dtype=torch.long, device=self.device)
        """The new tokens so far (B, steps); only tracked if there are constraints."""
        self.pending: Tensor | None = None
        self.steps = 0

    def _noise(self, count: int) -> Tensor:
        generator = torch.Generator()
        rows = [torch.rand(count, dtype=torch.float64, generator=generator.manual_seed(row.seed)) for row in self.rows]
        return torch.stack(rows).to(self.device)

    @property
    def active(self) -> list[SequenceState]:
        """The unfinished sequences."""
        return [row for row in self.rows if row.finished is None]

    @torch.inference_mode()
    def step(self) -> list[SequenceState]:
        """Adds one token to every unfinished sequence and returns those sequences.

        A sequence finishes with an end token, which is then its last id ("stop"), or at its limit ("length").
        Raises QuatrainError for a logit that is not finite, InputError if the constraints forbid every token.
        """
        if self.pending is None:
            self.model.prefill()
        else:
            self.model.read(self._shrink(self.pending))
        logits = self.model.logits.float()
        total = logits.logsumexp(dim=-1)
        if not bool(torch.isfinite(total).all()):
            raise QuatrainError(BROKEN)
        allowed = self._constrained(logits)
        if self.noise is None:
            tokens = allowed.argmax(dim=-1)
        else:
            for process in self.processors:
                allowed = process(allowed)
            tokens = draw(allowed, self.noise[:, self.steps])
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - total
        if not bool(torch.isfinite(logprobs).all()):
            raise QuatrainError(BROKEN)
        ended = [] if self.params.ignore_eos else torch.isin(tokens, self.end_ids).tolist()
        self.pending = tokens
        if self.constraints:
            self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        self.steps += 1
        return self._record(tokens.tolist(), logprobs.tolist(), ended)

    def _constrained(self, logits: Tensor) -> Tensor:
        if not self.constraints:
            return logits
        ids = torch.cat([self.model.decoder_ids, self.tokens], dim=1)
        state = DecodingState(ids, self.model.start, self.limits, self.steps)
        allowed = logits
        for constrain in self.constraints:
            allowed = constrain(allowed, state)
        empty = allowed.isneginf().all(dim=-1)
        if bool(empty.any()):
            finished = torch.tensor([row.finished is not None for row in self.rows], device=self.device)
            if bool((empty & ~finished).any()):
                raise InputError(NO_TOKEN_LEFT)
            # The next token of a finished row is never used.
            allowed = torch.where(empty[:, None], logits, allowed)
        return allowed

    def _record(self, tokens: list[int], logprobs: list[float], ended: list[bool]) -> list[SequenceState]:
        grown = []
        for index, row in enumerate(self.rows):
            if row.finished is not None:
                continue
            row.ids.append(tokens[index])
            row.logprobs.append(logprobs[index])
            if ended and ended[index]:
                row.finished, row.ended = "stop", True
            elif len(row.ids) >= row.limit:
                row.finished = "length"
            grown.append(row)
        return grown

    def _shrink(self, pending: Tensor) -> Tensor:
        """Drops finished rows if there are enough of them; returns the pending tokens (B,) of the rows that stay."""
        keep = [index for index, row in enumerate(self.rows) if row.finished is None]
        if len(keep) > SHRINK_AT * len(self.rows):
            return pending
        self.rows = [self.rows[index] for index in keep]
        chosen = torch.tensor(keep, device=self.device)
        self.model.select(chosen)
        self.limits, self.tokens = self.limits[chosen], self.tokens[chosen]
        if self.noise is not None:
            self.noise = self.noise[chosen]
        return pending[chosen]
