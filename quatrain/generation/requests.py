"""A sequence while it is generated: its prompt, parameters, noise and new tokens; and the request, which the caller
holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from quatrain.generation.grammar import GrammarState
from quatrain.generation.params import SamplingParams
from quatrain.generation.text import TextStreamer, TokenizerLike, find_stop

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
    decoder_prompt: tuple[int, ...] | None = None
    """What an encoder-decoder's decoder reads first: its start token, and what else it is given; None for a decoder,
    which starts with the prompt."""
    adapter: str | None = None
    """The adapter that the sequence uses, of a model with several."""
    features: torch.Tensor | None = field(default=None, repr=False)
    """What an encoder of sound reads in place of the prompt, one input of the model's frontend; or the pictures
    (N, C, H, W) whose vectors a decoder reads in place of the prompt's image tokens."""
    vectors: torch.Tensor | None = field(default=None, repr=False)
    """The vectors (N, embedding_size) of the pictures, once the runner has made them."""
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
    error: BaseException | None = None
    """Why the sequence failed; `finished` is then "error"."""
    cancelled: bool = False
    """Set by any thread to end the sequence before the next step."""
    published: int = 0
    """How many of the ids other threads may read: their stop strings have been looked for."""
    done: bool = False
    """Whether nothing about the sequence changes any more; set last."""
    submitted: float = 0.0
    """When the sequence came into the queue, by `time.perf_counter`."""
    reused: int = 0
    """How many tokens of the prompt were still in the cache when the sequence started."""
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
        return self.prompt if self.decoder_prompt is None else list(self.decoder_prompt)

    @property
    def source(self) -> list[int] | torch.Tensor:
        """What an encoder reads: features, or the ids of the prompt."""
        return self.prompt if self.features is None else self.features

    @cached_property
    def source_key(self) -> bytes | tuple[int, ...]:
        """Equal for equal sources: their encoder's output can be shared."""
        return tuple(self.prompt) if self.features is None else digest_of(self.features)

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
        state = (self.prompt, self.params, self.limit, self.seed, self.end_ids, self.decoder_prompt, self.adapter)
        return SequenceState(*state, self.features, self.vectors)

    def truncate(self, length: int) -> None:
        """Takes back all but the first `length` new tokens, as after a rejected speculation."""
        del self.ids[length:], self.logprobs[length:], self.top_logprobs[length:]
        self.finished, self.ended, self.edits = None, False, self.edits + 1


def digest_of(features: torch.Tensor) -> bytes:
    """A digest of features, equal only for equal ones."""
    return hashlib.blake2b(features.contiguous().cpu().numpy().tobytes(), digest_size=16).digest()


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


@dataclass
class Completion:
    """A generated completion. `ids` include the end token, if any; `text` excludes it and stop strings."""

    text: str
    ids: list[int]
    finish_reason: str
    """"stop" (an end token or stop string), "length" (max_new_tokens reached, or the model's context full) or
    "cancelled"."""
    logprobs: list[float]
    """Log-probability of each id in nats: under the model itself, before temperature and all processors, unless
    `logprobs_mode` asks for those of the distribution from which the id was taken."""
    score: float | None = None
    """Beam search only: the score that ranks hypotheses, their log-probability / length ** length_penalty."""
    alternatives: list[Completion] = field(default_factory=list)
    """With num_return_sequences above 1: the other samples, or the next best hypotheses of a beam search."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """With `logprobs`: at each id, the likeliest tokens and their log-probabilities, likeliest first."""
    given: list[bool] = field(default_factory=list)
    """Of a completion with results of tools: whether each id was put in, not generated. Empty: all were generated."""


class TextChunk(str):
    """A piece of streamed text; the last one carries the whole completion."""

    completion: Completion | None = None
    end: int = 0
    """How many of the completion's ids were generated for the text up to the end of this piece."""


class Request(Iterator[TextChunk]):
    """A prompt on its way through the engine: an iterator over the text of its completion, from `Engine.submit`.

    Iterating gives the text in pieces that are final; joined they are the whole text. Unfinished characters and
    possible beginnings of a stop string are held back. The last piece, perhaps empty, carries the `completion`. Several
    samples, and searches, give one piece at their end. Whoever waits for a request drives the engine, unless another
    thread does.
    """

    def __init__(
        self, sequences: Sequence[SequenceState], tokenizer: TokenizerLike | None, advance: Callable[[Request], None]
    ):
        """`sequences` are the samples of one prompt; `advance` generates the next token of all requests."""
        self.sequences, self._tokenizer, self._advance = list(sequences), tokenizer, advance
        self._streamer = TextStreamer(tokenizer, self.sequences[0].params.stop)
        self._ids: list[int] = []
        self._is_exhausted = False

    @property
    def done(self) -> bool:
        """Whether the request has finished, failed or been cancelled."""
        return all(sequence.done for sequence in self.sequences)

    @property
    def error(self) -> BaseException | None:
        """Why the request failed."""
        return next((sequence.error for sequence in self.sequences if sequence.error is not None), None)

    def cancel(self) -> None:
        """Ends the request before the engine's next step; from any thread, any number of times."""
        for sequence in self.sequences:
            sequence.cancelled = True

    def __del__(self) -> None:
        self.cancel()  # Nobody can read it any more.

    def result(self) -> Completion:
        """Waits for the completion; that of a cancelled request has what was generated until then.

        Raises InputError if constraints forbid every token, QuatrainError if the model's logits are not finite.
        """
        while not self.done:
            self._advance(self)
        if (error := self.error) is not None:
            raise error
        first, *others = (self._completion(sequence) for sequence in self.sequences)
        first.alternatives += others
        return first

    def __next__(self) -> TextChunk:
        while (piece := self.ready()) is None:
            if self._is_exhausted:
                raise StopIteration
            self._advance(self)
        return piece

    def ready(self) -> TextChunk | None:
        """The next piece, without waiting; None if there is none yet, and after the last one. Raises as `result`."""
        if self._is_exhausted:
            return None
        sequence = self.sequences[0]
        if not self.done:
            published = sequence.published
            if len(self.sequences) > 1 or published <= len(self._ids):
                return None
            self._ids += sequence.ids[len(self._ids) : published]
            if not (text := self._streamer.more(self._ids)):
                return None
            piece = TextChunk(text)
            piece.end = len(self._ids)
            return piece
        self._is_exhausted = True
        completion = self.result()
        last = TextChunk(completion.text[self._streamer.shown :])
        last.completion, last.end = completion, len(completion.ids)
        return last

    def split(self) -> list[Request]:
        """A request for each of the samples, in place of this one, so that each can be read while it is generated."""
        sequences, self.sequences = self.sequences, []
        return [Request([sequence], self._tokenizer, self._advance) for sequence in sequences]

    def _completion(self, sequence: SequenceState) -> Completion:
        visible = sequence.ids[:-1] if sequence.ended else sequence.ids
        text = self._tokenizer.decode(visible) if self._tokenizer is not None else ""
        return Completion(
            text[: find_stop(text, sequence.params.stop)],
            sequence.ids,
            sequence.finished or "length",
            sequence.logprobs,
            sequence.score,
            [self._completion(other) for other in sequence.alternatives],
            sequence.top_logprobs,
        )
