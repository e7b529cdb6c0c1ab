"""One sequence that is being generated: its prompt, its parameters, its noise, and what has been generated so far."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from quatrain.generation.grammar import GrammarState
from quatrain.generation.params import SamplingParams

NOISE_BLOCK = 256
"""Random numbers that are drawn at once for a sequence."""


@dataclass(eq=False)
class SequenceState:
    """One completion while it is generated: at most `limit` new tokens, sampled with noise from `seed`."""

    prompt: list[int]
    """The ids that the model reads first; the encoder's input for an encoder-decoder."""
    params: SamplingParams
    limit: int
    seed: int
    end_ids: tuple[int, ...] = ()
    """Tokens that end the completion."""
    decoder_start: int | None = None
    """The start token of an encoder-decoder's decoder; None for a decoder, which starts with the prompt."""
    adapter: str | None = None
    """The adapter that the sequence uses, of a model with several."""
    ids: list[int] = field(default_factory=list)
    """The new tokens so far, an end token included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each id, in nats, by `params.logprobs_mode`: by default under the model itself, before
    temperature and all processors."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """With `params.logprobs`: at each id, the likeliest tokens and their log-probabilities, likeliest first."""
    finished: str | None = None
    """"stop" or "length" once the completion is finished."""
    ended: bool = False
    """Whether the last id is an end token, which is not part of the text."""
    score: float | None = None
    """Beam search only: sum of the log-probabilities after constraints / length ** length_penalty."""
    alternatives: list[SequenceState] = field(default_factory=list)
    """Beam search only: the next best hypotheses, best first."""
    edits: int = 0
    """How often tokens were taken back; whoever caches something about `ids` compares it."""
    plan: object = field(default=None, repr=False)
    """What the chooser works out once from the parameters."""
    grammar: GrammarState | None = field(default=None, repr=False)
    """How far the completion has come in its grammar, if it has one; the chooser moves it."""
    _noise: list[float] = field(default_factory=list, repr=False)
    _generator: torch.Generator | None = field(default=None, repr=False)

    @property
    def prefix(self) -> list[int]:
        """The ids that the decoder reads before the first new one."""
        return self.prompt if self.decoder_start is None else [self.decoder_start]

    def noise(self, index: int) -> float:
        """The uniform random number in [0, 1) that draws new token number `index`; it depends on the seed alone."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        while len(self._noise) <= index:
            self._noise += torch.rand(NOISE_BLOCK, dtype=torch.float64, generator=self._generator).tolist()
        return self._noise[index]

    def append(
        self, token: int, logprob: float, top: list[tuple[int, float]] | None = None, *, complete: bool = False
    ) -> None:
        """Adds a token; an end token or a `complete` text ("stop") or the limit ("length") finishes the sequence."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if top is not None:
            self.top_logprobs.append(top)
        if token in self.end_ids:
            self.finished, self.ended = "stop", True
        elif complete:
            self.finished = "stop"
        elif len(self.ids) >= self.limit:
            self.finished = "length"

    def sibling(self) -> SequenceState:
        """A sequence without tokens for the same request."""
        state = (self.prompt, self.params, self.limit, self.seed, self.end_ids, self.decoder_start, self.adapter)
        return SequenceState(*state)

    def truncate(self, length: int) -> None:
        """Takes back all but the first `length` new tokens, as after a rejected speculation."""
        del self.ids[length:], self.logprobs[length:], self.top_logprobs[length:]
        self.finished, self.ended, self.edits = None, False, self.edits + 1


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
