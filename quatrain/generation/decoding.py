"""A batch of sequences in flight: prefill with left padding, then one token per sequence and step, all cached.

Left padding (segment 0) aligns the rows' ends, so that one preallocated cache serves them all; positions are counted
from each row's first real token. Finished rows leave the batch once enough of them have gathered to repay the copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.generation.logits import SamplingParams, draw, processors
from quatrain.models.cache import KVCache
from quatrain.models.stack import Model

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


class Decoding:
    """Steps a batch of sequences; `step` adds one token to each unfinished one."""

    def __init__(self, model: Model, sequences: Sequence[Stream], params: SamplingParams, end_ids: Tensor):
        self.model, self.params = model, params
        self.rows = list(sequences)
        """The sequence of each line of the batch, finished ones included until they leave."""
        self.end_ids = end_ids
        self.processors = processors(params)
        self.device = model.device
        self.position_limit = model.config.max_position_embeddings - 1
        width = max(len(row.prompt) for row in self.rows)
        new = max(row.limit for row in self.rows)
        self.cache = KVCache(
            model.config, len(self.rows), width + new, dtype=model.embed_tokens.weight.dtype, device=self.device
        )
        self.noise = self._noise(new) if params.temperature else None
        self.pending: Tensor | None = None
        self.positions: Tensor | None = None
        """Position of each row's next token (B, 1); None while no row is padded."""
        self.steps = 0
        self.logits = self._prefill(width)

    def _noise(self, count: int) -> Tensor:
        generator = torch.Generator()
        rows = [torch.rand(count, dtype=torch.float64, generator=generator.manual_seed(row.seed)) for row in self.rows]
        return torch.stack(rows).to(self.device)

    def _prefill(self, width: int) -> Tensor:
        lengths = torch.tensor([len(row.prompt) for row in self.rows])
        ids = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in self.rows], device=self.device)
        positions = segments = None
        if bool((lengths < width).any()):
            positions = (torch.arange(width)[None] - (width - lengths)[:, None]).to(self.device)
            segments = (positions >= 0).long()
            positions = positions.clamp(min=0)
            self.positions = positions[:, -1:] + 1
        hidden = self.model.hidden_states(ids, positions=positions, segments=segments, cache=self.cache)
        return self.model.say(hidden[:, -1])

    @property
    def active(self) -> list[Stream]:
        """The sequences that are not finished."""
        return [row for row in self.rows if row.finished is None]

    @torch.inference_mode()
    def step(self) -> list[Stream]:
        """Adds one token to every unfinished sequence and returns those sequences.

        A sequence ends ("stop") with an end token, which is its last id, or ("length") at its limit.
        Raises QuatrainError where the model gives a logit that is not finite.
        """
        if self.pending is not None:
            self.logits = self._forward(self._shrink(self.pending))
        logits = self.logits.float()
        if self.noise is None:
            tokens = logits.argmax(dim=-1)
        else:
            warped = logits
            for process in self.processors:
                warped = process(warped)
            tokens = draw(warped, self.noise[:, self.steps])
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        if not bool(torch.isfinite(logprobs).all()):
            raise QuatrainError(
                "The model gave logits that are not finite (NaN or infinite), so nothing can be "
                "generated from it. Its weights are broken or its training diverged: use another one."
            )
        ended = [] if self.params.ignore_eos else torch.isin(tokens, self.end_ids).tolist()
        self.pending = tokens
        self.steps += 1
        return self._record(tokens.tolist(), logprobs.tolist(), ended)

    def _record(self, tokens: list[int], logprobs: list[float], ended: list[bool]) -> list[Stream]:
        grown = []
        for index, row in enumerate(self.rows):
            if row.finished is not None:
                continue
            row.ids.append(tokens[index])
            row.logprobs.append(logprobs[index])
            if ended and ended[index]:
                row.finished = "stop"
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
        self.cache.select(chosen)
        if self.noise is not None:
            self.noise = self.noise[chosen]
        if self.positions is not None:
            self.positions = self.positions[chosen]
        return pending[chosen]

    def _forward(self, tokens: Tensor) -> Tensor:
        positions = self.positions
        if positions is not None:
            # Finished rows that still wait to leave would run past the model's last position.
            self.positions = (positions + 1).clamp(max=self.position_limit)
        hidden = self.model.hidden_states(tokens[:, None], positions=positions, cache=self.cache)
        return self.model.say(hidden[:, -1])
