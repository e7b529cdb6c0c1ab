"""A batch of sequences in flight: one token per sequence and step, the likeliest or a drawn one.

Finished rows leave the batch once enough of them have gathered to repay the copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.constraints import Constraint, Said
from quatrain.generation.logits import BROKEN, NOTHING_LEFT, SamplingParams, draw, processors
from quatrain.generation.reader import Reader
from quatrain.models.transformer.stack import Model

SHRINK_AT = 0.75
"""The batch is cut down to its unfinished rows once they are at most this share of it."""


@dataclass
class Stream:
    """One completion as it grows: `limit` new tokens at most, its noise drawn from `seed`."""

    prompt: list[int]
    limit: int
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of each chosen token under the model itself, before temperature and the other processors; in nats."""
    finished: str | None = None
    ended: bool = False
    """Whether the last id is an end token, which is no part of the text."""
    adapter: str | None = None
    """The adapter of a mixture that it goes through."""
    score: float | None = None
    """Of beam search: the sum of the log-probabilities after constraints, over length ** length_penalty."""
    alternatives: list[Stream] = field(default_factory=list)
    """Of beam search: the next best hypotheses, best first."""


def row_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """A seed for each prompt, from the call's seed, the prompt's ids and how often it came before in this call.

    So a prompt's completion depends neither on its neighbours nor on its place, and repeated prompts differ.
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


def adapters_of(model: Model, streams: Sequence[Stream]) -> list[str | None] | None:
    """The adapter of each completion, where the model has several to choose from."""
    return None if model.adapter_set is None else [stream.adapter for stream in streams]


class Decoding:
    """Steps a batch of sequences; `step` adds one token to each unfinished one."""

    def __init__(
        self,
        model: Model,
        sequences: Sequence[Stream],
        params: SamplingParams,
        end_ids: Tensor,
        *,
        constraints: Sequence[Constraint] = (),
        start_id: int | None = None,
    ):
        self.params, self.end_ids = params, end_ids
        self.rows = list(sequences)
        """The sequence of each line of the batch, finished ones included until they leave."""
        self.processors, self.constraints = processors(params), list(constraints)
        new = max(row.limit for row in self.rows)
        self.reader = Reader(model, [row.prompt for row in self.rows], new, start_id, adapters_of(model, self.rows))
        self.device = self.reader.device
        self.limits = torch.tensor([[row.limit] for row in self.rows], device=self.device)
        self.noise = self._noise(new) if params.temperature else None
        self.tokens = torch.empty(len(self.rows), 0, dtype=torch.long, device=self.device)
        """The new tokens so far (B, steps), kept where a constraint looks at them."""
        self.pending: Tensor | None = None
        self.steps = 0

    def _noise(self, count: int) -> Tensor:
        generator = torch.Generator()
        rows = [torch.rand(count, dtype=torch.float64, generator=generator.manual_seed(row.seed)) for row in self.rows]
        return torch.stack(rows).to(self.device)

    @property
    def active(self) -> list[Stream]:
        """The sequences that are not finished."""
        return [row for row in self.rows if row.finished is None]

    @torch.inference_mode()
    def step(self) -> list[Stream]:
        """Adds one token to every unfinished sequence and returns those sequences.

        A sequence ends ("stop") with an end token, which is its last id, or ("length") at its limit.
        Raises QuatrainError where the model gives a logit that is not finite, InputError where every token is ruled
        out.
        """
        if self.pending is not None:
            self.reader.read(self._shrink(self.pending))
        logits = self.reader.logits.float()
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
        said = Said(torch.cat([self.reader.said, self.tokens], dim=1), self.reader.start, self.limits, self.steps)
        allowed = logits
        for constrain in self.constraints:
            allowed = constrain(allowed, said)
        empty = allowed.isneginf().all(dim=-1)
        if bool(empty.any()):
            finished = torch.tensor([row.finished is not None for row in self.rows], device=self.device)
            if bool((empty & ~finished).any()):
                raise InputError(NOTHING_LEFT)
            # what a finished row would say next is not looked at
            allowed = torch.where(empty[:, None], logits, allowed)
        return allowed

    def _record(self, tokens: list[int], logprobs: list[float], ended: list[bool]) -> list[Stream]:
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
        """Drops the finished rows if they are many; the tokens (B,) about to be read, of the rows that stay."""
        keep = [index for index, row in enumerate(self.rows) if row.finished is None]
        if len(keep) > SHRINK_AT * len(self.rows):
            return pending
        self.rows = [self.rows[index] for index in keep]
        chosen = torch.tensor(keep, device=self.device)
        self.reader.select(chosen)
        self.limits, self.tokens = self.limits[chosen], self.tokens[chosen]
        if self.noise is not None:
            self.noise = self.noise[chosen]
        return pending[chosen]
