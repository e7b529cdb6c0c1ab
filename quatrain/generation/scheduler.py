"""Continuous batching: sequences enter and leave the running batch between any two steps.

Yu et al. 2022 (Orca): every step decodes one token of each running sequence, and reads at most `chunk` tokens of
waiting prompts (chunked prefill, Agrawal et al. 2023, arXiv 2308.16369), so that a long prompt delays nobody for long.
Slots of finished sequences keep their tokens: a later prompt that begins with the same tokens reuses them (as
RadixAttention does, Zheng et al. 2024, arXiv 2312.07104, without a tree). `docs/decisions/0050-slots.md` compares slots
with pages.

The slots that decode are the first of the cache, so that a step reads one contiguous range of it. At most one sequence
behind them is partly read; idle slots follow.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from quatrain.core.errors import QuatrainError
from quatrain.generation.beam import BeamSearch
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.contrastive import ContrastiveSearch
from quatrain.generation.guidance import GuidedSearch
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import ModelRunner
from quatrain.generation.speculative import Proposal, Proposer, accept_or_replace
from quatrain.models.kernels.decode import memory_bandwidth
from quatrain.models.kernels.threads import one_torch_thread
from quatrain.planning.limits import fits
from quatrain.planning.machine import available_memory

IDLE_BYTES = 256 * 1024 * 1024
"""Memory that the slots of finished sequences may take while nothing runs."""
IDLE_SHARE = 8
"""They may also take one part in so many of the free memory."""
FIRST_ROOM = 256
"""New tokens for which a sequence that starts gets room at once; more room follows when it is needed."""

Key = tuple[str | None, bytes | tuple[int, ...] | None]
"""What besides its tokens determines a slot's keys and values: the adapter, and the pictures or the encoder's input."""


class Search(Protocol):
    """Sequences that need several rows of the model each, which advance together."""

    rows: list[SequenceState]
    """The sequences that are not done."""
    width: int
    """Rows of the model for each."""

    def step(self) -> None:
        """Advances every sequence; those that are done leave."""

    def cancel(self, rows: Sequence[int]) -> None:
        """Takes sequences out, by their places."""


@dataclass(eq=False)
class Slot:
    """What a slot of the cache holds. Slots move; their number is their place in `Scheduler.slots`."""

    tokens: list[int] = field(default_factory=list)
    """The tokens whose keys and values are stored."""
    exact: int = 0
    """How many of them, the first ones, may be reused. Native code rounds those that it decodes with quantized weights,
    which would then give another result than reading them as a prompt."""
    key: Key | None = None
    sequence: SequenceState | None = None
    pending: list[int] = field(default_factory=list)
    """Tokens of the sequence that are not read yet."""
    text_length: int = 0
    """Length of the text as which the tokens were read; it matters if rotary frequencies depend on it."""
    is_encoded: bool = False
    """Whether the slot also holds what the encoder read."""
    used: int = 0
    """The last step in which the slot was used."""


@dataclass
class Statistics:
    """What the engine has done so far, and what it is doing. Times are in seconds."""

    running: int = 0
    waiting: int = 0
    slots: int = 0
    cache_bytes: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    reused_tokens: int = 0
    """Of these, the tokens whose keys and values were still in the cache."""
    generated_tokens: int = 0
    proposed_tokens: int = 0
    """Tokens that speculative decoding proposed."""
    accepted_tokens: int = 0
    """Of these, the accepted ones."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    decoded_tokens: int = 0
    """Generated tokens without the first one of each sequence."""
    first_token_seconds: float = 0.0
    """Sum over all sequences of the time from their submission to their first token."""
    started: int = 0
    """Sequences that have their first token."""
    decoder: str = "torch"
    """What runs decoding steps: "native" code on the CPU, "static" steps (CUDA graphs), or plain "torch"."""
    decoder_reason: str = ""
    """Why PyTorch runs them."""
    weight_bandwidth: float = 0.0
    """Bytes of weights that a native decoding step reads in a second."""
    memory_bandwidth: float = 0.0
    """Bytes that this machine reads from memory in a second; measured once weights were read natively."""

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of decoding steps."""
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading prompts; reused tokens do not count."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def mean_time_to_first_token(self) -> float:
        """Mean time from a submission to the first token."""
        return self.first_token_seconds / self.started if self.started else 0.0


class Scheduler:
    """Runs submitted sequences to their ends, one `step` at a time.

    `submit` may be called from any thread; `step` by one at a time.
    """

    def __init__(
        self,
        runner: ModelRunner,
        chooser: TokenChooser,
        *,
        is_stopped: Callable[[list[int], SamplingParams], bool],
        proposer: Proposer | None = None,
        max_rows: int = 64,
        chunk: int = 512,
        idle_slots: int = 4,
        min_reuse: int = 16,
    ):
        """At most `max_rows` rows run at once; each beam is one. A step reads at most `chunk` tokens of prompts, and
        `busy_chunk` if others wait for their next token meanwhile.
        `idle_slots` slots of finished sequences are kept besides those in use. At least `min_reuse` tokens are reused.
        `is_stopped` tells whether the newest of a sequence's ids has completed a stop string. A `proposer` guesses
        tokens, for speculative decoding.
        """
        self.runner, self.chooser, self.is_stopped, self.proposer = runner, chooser, is_stopped, proposer
        self.max_rows, self.chunk, self.idle_slots, self.min_reuse = max_rows, chunk, idle_slots, min_reuse
        on_cpu = runner.device.type == "cpu"
        self.busy_chunk = 128 if on_cpu else 512
        self.step_tokens = 32 if on_cpu else 256
        """Tokens, guesses included, that a decoding step reads in little more time than one of each sequence."""
        self.waiting: deque[SequenceState] = deque()
        self.slots: list[Slot] = []
        self.decoding = 0
        """Number of slots that decode, the first ones."""
        self.reading = 0
        """Number of slots behind them whose prompts are not read yet; between steps at most one."""
        self.searches: list[Search] = []
        self.statistics = Statistics()
        self._steps, self._budget = 0, chunk
        self._starting: list[SequenceState] = []
        """Sequences that have left the queue and do not run yet."""
        self._weights: tuple[tuple[int, int], ...] | None = None
        self._queue = threading.Lock()

    @property
    def active(self) -> int:
        """Number of slots in use."""
        return self.decoding + self.reading

    @property
    def rows(self) -> int:
        """Rows that run."""
        return self.active + sum(len(search.rows) * search.width for search in self.searches)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self.active or self.searches or self.waiting)

    def submit(self, sequences: Sequence[SequenceState]) -> None:
        """Adds sequences to the queue."""
        for sequence in sequences:
            sequence.submitted = time.perf_counter()
        with self._queue:
            self.waiting.extend(sequences)

    @torch.inference_mode()
    def step(self) -> None:
        """Generates a token of every running sequence, and starts waiting ones as far as there is room.

        A sequence whose logits are not finite, or whose constraints forbid every token, fails alone. Any other error
        fails all running sequences and is raised.
        """
        self._steps += 1
        try:
            self._drop_cancelled()
            self._decode()
            self._prefill()
            self._search()
        except BaseException as error:
            self._abandon(error)
            raise
        if self.is_idle:
            self._trim()
            if self.proposer is not None:
                self.proposer.propose([], [])

    def current_statistics(self) -> Statistics:
        """The statistics until now."""
        native = self.runner.native
        found = replace(self.statistics, running=self.rows, waiting=len(self.waiting), slots=len(self.slots))
        found.cache_bytes = self.runner.cache.nbytes
        found.decoder = "torch" if native.decoder is None else "native"
        found.decoder_reason = native.reason
        if native.decoder is None and not self.runner.static.reason:
            found.decoder, found.decoder_reason = "static", ""
        elif self.runner.device.type == "cuda":
            found.decoder_reason = self.runner.static.reason
        if native.steps:
            found.weight_bandwidth, found.memory_bandwidth = native.bandwidth(), memory_bandwidth()
        return found

    def _drop_cancelled(self) -> None:
        for index in reversed(range(self.active)):
            sequence = self.slots[index].sequence
            if sequence is not None and sequence.cancelled:
                self._retire(index)
                self._finish(sequence, "cancelled")
        with self._queue:
            cancelled = [sequence for sequence in self.waiting if sequence.cancelled]
            if cancelled:
                dropped = set(cancelled)  # Others may be cancelled meanwhile.
                self.waiting = deque(sequence for sequence in self.waiting if sequence not in dropped)
        for search in self.searches:
            cancelled += [row for row in search.rows if row.cancelled]
            search.cancel([index for index, row in enumerate(search.rows) if row.cancelled])
        for sequence in cancelled:
            self._finish(sequence, "cancelled")

    def _finish(self, sequence: SequenceState, reason: str, error: BaseException | None = None) -> None:
        """Ends a sequence from outside, without a further token."""
        sequence.finished, sequence.error = reason, error
        sequence.done = True
        self.statistics.cancelled += reason == "cancelled"
        self.statistics.failed += error is not None

    def _abandon(self, error: BaseException) -> None:
        """Fails all that runs and forgets what is stored, after an error in the middle of a step."""
        reason = error if isinstance(error, Exception) else QuatrainError(f"Generation was interrupted: {error!r}")
        running = [slot.sequence for slot in self.slots if slot.sequence is not None]
        searched = [row for search in self.searches for row in search.rows]
        for sequence in dict.fromkeys([*running, *searched, *self._starting]):
            if not sequence.done:
                self._finish(sequence, "error", reason)
        self.slots, self.searches, self._starting, self.decoding, self.reading = [], [], [], 0, 0
        self.runner.cache.release(0)

    # Decoding

    def _decode(self) -> None:
        """A token for each decoding slot, or several if guesses are accepted."""
        start = time.perf_counter()
        for index in reversed(range(self.decoding)):
            slot = self.slots[index]
            if self.runner.is_outgrown(slot.text_length, self.runner.cache.lengths[index] + len(slot.pending)):
                with self._queue:
                    self.waiting.appendleft(self._retire(index))
        if not self.decoding:
            return
        slots, before = self.slots[: self.decoding], self.statistics.generated_tokens
        proposals = self._propose(slots)
        for slot, proposal in zip(slots, proposals):
            slot.pending = slot.pending + proposal.tokens
        logits = self._read(0, slots, [slot.pending for slot in slots], every=bool(proposals), decoding=True)
        likeliest = None if proposals else self.runner.native.likeliest
        self._choose(logits if proposals else logits[:, None], slots, proposals, likeliest)
        self.statistics.decode_seconds += time.perf_counter() - start
        self.statistics.decode_steps += 1
        self.statistics.decoded_tokens += self.statistics.generated_tokens - before

    def _propose(self, slots: Sequence[Slot]) -> list[Proposal]:
        """Guesses for each slot; an empty list if there are none at all."""
        if self.proposer is None:
            return []
        rows = [slot.sequence for slot in slots if slot.sequence is not None]
        share = max(self.step_tokens // len(rows) - 1, 0)
        # The last token of a sequence is not read: a guess must leave room for it. What is drawn depends on the number
        # of drawn guesses, which must therefore not depend on the other sequences.
        counts = [
            min(
                self.proposer.count,
                row.limit - len(row.ids) - 1,
                self.proposer.count if row.params.temperature and self.proposer.draws else share,
            )
            for row in rows
        ]
        if (limit := self.runner.original_length) is not None:
            # A guess past this length would change the rotary frequencies of a text that may take it back.
            lengths = [max(self.runner.cache.lengths[index], slot.text_length) for index, slot in enumerate(slots)]
            rooms = [limit - length - len(slot.pending) for length, slot in zip(lengths, slots)]
            counts = [max(min(count, room), 0) for count, room in zip(counts, rooms)]
        if max(counts) < 1:
            return []
        proposals = self.proposer.propose(rows, counts)
        count = sum(len(proposal.tokens) for proposal in proposals)
        self.statistics.proposed_tokens += count
        return proposals if count else []

    def _read(
        self,
        first: int,
        slots: Sequence[Slot],
        tokens: Sequence[list[int]],
        *,
        every: bool = False,
        decoding: bool = False,
    ) -> Tensor:
        """Reads tokens of the slots from number `first` on; returns the logits after them, or after `every` one."""
        cache, rows = self.runner.cache, [slot.sequence for slot in slots if slot.sequence is not None]
        lengths = cache.lengths[first : first + len(slots)]
        virtual = [0 if slot.tokens else self.runner.virtual_tokens(row.adapter) for slot, row in zip(slots, rows)]
        totals = [
            max(length + more + len(slot.pending), slot.text_length)
            for slot, length, more in zip(slots, lengths, virtual)
        ]
        needed = max(length + more + len(ids) for length, more, ids in zip(lengths, virtual, tokens))
        self._make_room(max(needed, min(2 * cache.max_length, max(map(self._longest, rows)))), needed)
        sources = None if slots[0].is_encoded or not self.runner.has_encoder else [row.source for row in rows]
        adapters = [row.adapter for row in rows]
        vectors = None
        if not decoding and not self.runner.has_encoder and any(row.features is not None for row in rows):
            seen = zip(rows, tokens, slots)
            vectors = [self.runner.vectors_of(row, ids, slot.tokens) for row, ids, slot in seen]
        logits = self.runner.read(
            first,
            tokens,
            adapters=adapters,
            sources=sources,
            vectors=vectors,
            text_lengths=totals,
            every=every,
            decoding=decoding,
        )
        for slot, ids, total in zip(slots, tokens, totals):
            if slot.exact == len(slot.tokens) and not (decoding and self.runner.rounds_inputs):
                slot.exact += len(ids)
            slot.tokens += ids
            slot.pending = slot.pending[len(ids) :]
            slot.text_length, slot.used, slot.is_encoded = total, self._steps, True
        return logits

    def _longest(self, sequence: SequenceState) -> int:
        """The most places of a slot that a sequence can need."""
        return self.runner.virtual_tokens(sequence.adapter) + len(sequence.prefix) + sequence.limit

    def _choose(
        self,
        logits: Tensor,
        slots: Sequence[Slot],
        proposals: Sequence[Proposal] = (),
        likeliest: Tensor | None = None,
    ) -> None:
        """Adds a token to the sequence of each slot, and more as long as they are those that were guessed.

        logits (B, T, V) follow each slot's last token and its guesses; `likeliest` as for `TokenChooser.choose`. Slots
        of finished sequences become idle.
        """
        guesses = list(proposals) or [Proposal() for _ in slots]
        rows = [slot.sequence for slot in slots if slot.sequence is not None]
        going, added = list(range(len(rows))), [0] * len(rows)
        step = 0
        while going:
            values = logits[:, step] if len(going) == len(rows) else logits[going, step]
            revise = self._revision(going, step, rows, guesses) if proposals else None
            with one_torch_thread(self.runner.native.decoder is not None and likeliest is None):
                choice = self.chooser.choose(values, [rows[index] for index in going], revise, likeliest=likeliest)
            for place, index in enumerate(going):
                if (problem := choice.problems[place]) is not None:
                    self._finish(rows[index], "error", problem)
                    continue
                top, complete = choice.top[place], choice.complete[place]
                rows[index].append(choice.tokens[place], choice.logprobs[place], top, complete=complete)
                added[index] += 1
                self._publish(rows[index])
            going = [
                index
                for place, index in enumerate(going)
                if rows[index].finished is None and guesses[index].tokens[step : step + 1] == [choice.tokens[place]]
            ]
            step += 1
            self.statistics.accepted_tokens += len(going)
        for index, (slot, guess) in enumerate(zip(slots, guesses)):
            if rejected := len(guess.tokens) - max(added[index] - 1, 0):
                slot.tokens = slot.tokens[: len(slot.tokens) - rejected]
                slot.exact = min(slot.exact, len(slot.tokens))
                self.runner.cache.truncate(index, self.runner.cache.lengths[index] - rejected)
        for index in reversed(range(self.decoding)):
            slot = self.slots[index]
            if slot.sequence is not None and slot.sequence.done:
                self._retire(index, clear=slot.sequence.error is not None)
            elif slot.sequence is not None and not slot.pending:
                slot.pending = slot.sequence.ids[-1:]

    @staticmethod
    def _revision(
        going: Sequence[int], step: int, rows: Sequence[SequenceState], guesses: Sequence[Proposal]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Rejection sampling of guesses that were drawn from a distribution."""

        def revise(processed: Tensor, tokens: Tensor) -> Tensor:
            tokens = tokens.clone()
            for place, index in enumerate(going):
                guess = guesses[index]
                if guess.probabilities is not None and step < len(guess.tokens):
                    drawn = guess.tokens[step], guess.probabilities[step]
                    tokens[place] = accept_or_replace(processed[place], *drawn, rows[index])
            return tokens

        return revise

    def _publish(self, row: SequenceState) -> None:
        """Makes the newest token visible to whoever reads the sequence, after looking for stop strings."""
        if row.params.stop and row.score is None and not row.ended and self.is_stopped(row.ids, row.params):
            row.finished = "stop"
        if not row.published:
            self.statistics.started += 1
            self.statistics.first_token_seconds += time.perf_counter() - row.submitted
        self.statistics.generated_tokens += len(row.ids) - row.published
        if row.finished is None:
            row.published = len(row.ids)
        else:
            self.statistics.finished += 1
            row.done = True

    # Starting

    def _prefill(self) -> None:
        """Reads prompts, at most `chunk` tokens of them, and chooses the first token of those that are read."""
        start = time.perf_counter()
        self._budget = budget = min(self.chunk, self.busy_chunk) if self.decoding else self.chunk
        while budget > 0:
            if not self.reading:
                self._admit(budget)
            if not self.reading:
                break
            slots = self.slots[self.decoding : self.active]
            largest = self.runner.largest_chunk(budget)
            tokens = [slot.pending[:largest] for slot in slots]
            logits = self._read(self.decoding, slots, tokens)
            budget -= len(slots) * max(map(len, tokens))
            if not slots[0].pending:
                self.decoding, self.reading = self.active, 0
                self._choose(logits[:, None], slots)
        self.statistics.prefill_seconds += time.perf_counter() - start

    def _admit(self, budget: int) -> None:
        """Gives slots to the first waiting sequences that can be read together, within about `budget` tokens."""
        if self.waiting:
            self._check_weights()
        while self.waiting:
            sequence = self.waiting[0]
            if sequence.params.rows > 1:
                if self.reading or not self._admit_search():
                    return
                continue
            match, shared = self._match(sequence)
            if not self._can_join(sequence, match, shared, budget):
                return
            with self._queue:
                self._starting = [self.waiting.popleft()]
            self._place(sequence, match, shared)
            self._starting = []

    def _check_weights(self) -> None:
        """Forgets all texts that were read by other weights than the model has now."""
        self.runner.refresh()
        version = self.runner.native.weights_version
        if version != self._weights:
            self._weights = version
            for index, slot in enumerate(self.slots):
                slot.key = None
                if index >= self.active:
                    self._empty(index)
            if not self.active and self.runner.follow_model():
                self.slots = []

    def _match(self, sequence: SequenceState) -> tuple[int | None, int]:
        """The slot that shares the most tokens with a sequence, and how many of them can be reused."""
        wanted, key, cache = _tokens_of(sequence), _key_of(sequence), self.runner.cache
        virtual = self.runner.virtual_tokens(sequence.adapter)
        limit = self.runner.original_length
        best: tuple[int | None, int] = (None, 0)
        # At least one token must be read: its logits choose the next one.
        most, has_encoder = len(wanted) - 1, self.runner.has_encoder
        if most < self.min_reuse and not has_encoder:
            return best
        for index, slot in enumerate(self.slots):
            if slot.key != key or (limit is not None and max(slot.text_length, virtual + len(wanted)) > limit):
                continue
            shared, needed = 0, max(self.min_reuse, best[1] + 1)
            if _share(slot.tokens, wanted, needed) and needed <= min(most, slot.exact):
                shared = min(_common_prefix(slot.tokens, wanted), most, slot.exact)
                if not cache.can_truncate(index, virtual + shared):
                    shared = 0
            if shared > best[1] or (best[0] is None and has_encoder and slot.is_encoded):
                best = index, shared
        return best

    def _can_join(self, sequence: SequenceState, match: int | None, shared: int, budget: int) -> bool:
        """Whether a sequence can start now, and be read together with those that `reading` counts."""
        slots = self.slots[self.decoding : self.active]
        if self.rows and self.rows >= self.max_rows:
            return False
        running = [slot.sequence.adapter for slot in self.slots if slot.sequence is not None]
        if not self.runner.can_share([*running, sequence.adapter]) or not self._fits(sequence):
            return False
        count = len(_tokens_of(sequence)) - shared
        if not slots:
            return count <= budget or budget == self._budget  # The rest of a step's tokens is not worth a part.
        counts = [*(len(slot.pending) for slot in slots), count]
        columns = len(counts) * max(counts)
        largest = self.runner.largest_chunk(budget)
        if columns > min(budget, 2 * sum(counts)) or (largest is not None and max(counts) > largest):
            return False
        first = slots[0]
        seen = None if first.sequence is None else first.sequence.features
        if not self.runner.has_encoder and (seen is None) != (sequence.features is None):
            return False  # How a text is read must not depend on the pictures of another one.
        if self.runner.has_encoder and first.is_encoded != (match is not None):
            return False
        if self.runner.model.soft_prompt is not None and (
            first.sequence is None or first.sequence.adapter != sequence.adapter or bool(first.tokens) != bool(shared)
        ):
            return False
        # A prompt that shares its beginning with one that is about to be read waits for that.
        wanted, key, needed = _tokens_of(sequence), _key_of(sequence), max(shared, 1) + self.min_reuse
        if len(wanted) < needed:
            return True
        texts = ([*slot.tokens, *slot.pending] for slot in slots if slot.key == key)
        return not any(_share(text, wanted, needed) for text in texts)

    def _place(self, sequence: SequenceState, match: int | None, shared: int) -> None:
        """Gives a sequence the slot behind those in use, with `shared` tokens of the matching slot."""
        target, cache = self.active, self.runner.cache
        virtual, wanted = self.runner.virtual_tokens(sequence.adapter), _tokens_of(sequence)
        stored = virtual + shared if shared else 0
        if match is not None and match >= target and 2 * shared >= len(self.slots[match].tokens):
            place = match
        else:
            running = [slot.sequence for slot in self.slots if slot.sequence is not None]
            place = self._free_slot(match, max(map(self._longest, [*running, sequence])))
            if match is None:
                self._empty(place)
            elif place != match:
                cache.copy(match, place, stored)
                self.slots[place] = replace(self.slots[match], sequence=None, pending=[])
        cache.truncate(place, stored)
        slot = self.slots[place]
        slot.tokens, slot.pending, slot.text_length = wanted[:shared], wanted[shared:], stored
        slot.exact = shared
        slot.key, slot.sequence, slot.used = _key_of(sequence), sequence, self._steps
        if not sequence.ids:
            self.statistics.prompt_tokens += len(sequence.prompt)
            self.statistics.reused_tokens += shared
            sequence.reused = shared
        self._swap(place, target)
        self.reading += 1
        room = min(self._longest(sequence), virtual + len(wanted) + FIRST_ROOM)
        self._make_room(room, room)

    def _make_room(self, length: int, needed: int) -> None:
        """Makes room for texts of `length` tokens if there is none for `needed`, at the cost of idle slots."""
        cache = self.runner.cache
        if needed > cache.max_length:
            if not self._fits_slots(len(self.slots), length):
                self._release_idle()
            cache.reserve(length=length)

    def _release_idle(self) -> None:
        self.runner.cache.release(self.active)
        del self.slots[self.active :]

    def _free_slot(self, avoid: int | None, length: int) -> int:
        """A slot that is not in use: an empty one, a new one if there is memory for texts of `length` tokens, or the
        one that has been idle for longest.
        """
        idle = range(self.active, len(self.slots))
        empty = [index for index in idle if not self.slots[index].tokens]
        if empty:
            return empty[0]
        wanted = min(len(self.waiting) + 1, max(self.max_rows - self.rows, 1))
        for new in (wanted, 1):
            may_grow = len(idle) <= self.idle_slots and self._fits_slots(len(self.slots) + new, length)
            if may_grow or (new == 1 and not idle):
                self.runner.cache.reserve(slots=len(self.slots) + new)
                self.slots += [Slot() for _ in range(new)]
                return len(self.slots) - new
        others = [index for index in idle if index != avoid] or list(idle)
        return min(others, key=lambda index: self.slots[index].used)

    def _fits(self, sequence: SequenceState) -> bool:
        """Whether memory suffices for one more sequence; one alone may always try."""
        if not self.active:
            return True
        running = [slot.sequence for slot in self.slots if slot.sequence is not None]
        longest = max(map(self._longest, [*running, sequence]))
        if self._fits_slots(max(len(self.slots), self.active + 1), longest):
            return True
        self._release_idle()
        return self._fits_slots(self.active + 1, longest)

    def _fits_slots(self, slots: int, length: int) -> bool:
        """Whether memory suffices for a cache of so many slots of `length` tokens."""
        cache = self.runner.cache
        return fits(self.runner.slot_bytes(slots, length) - cache.nbytes, cache.device)

    def _retire(self, index: int, clear: bool = False) -> SequenceState:
        """Takes the sequence out of a slot in use, which becomes idle and keeps its tokens unless `clear`."""
        if index < self.decoding:
            self._swap(index, self.decoding - 1)
            self.decoding -= 1
            index, self.reading = self.decoding, self.reading + 1
        last = self.active - 1
        self._swap(index, last)
        self.reading -= 1
        slot = self.slots[last]
        sequence, slot.sequence, slot.pending = slot.sequence, None, []
        if clear:
            self.runner.cache.clear(last)
            self._empty(last)
        if sequence is None:
            raise ValueError(f"slot {index} is not in use")
        return sequence

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self.runner.cache.swap(one, other)
            self.slots[one], self.slots[other] = self.slots[other], self.slots[one]

    def _empty(self, index: int) -> None:
        self.runner.cache.truncate(index, 0)
        self.slots[index] = Slot(sequence=self.slots[index].sequence, pending=self.slots[index].pending)

    def _trim(self) -> None:
        """Frees the memory of idle slots beyond `IDLE_BYTES` or their share of it, those idle for longest first."""
        cache = self.runner.cache
        if cache.nbytes <= IDLE_BYTES:
            return
        most = max(IDLE_BYTES, (available_memory(cache.device) or 0) // IDLE_SHARE)
        keep = most * len(self.slots) // cache.nbytes
        if keep >= len(self.slots):
            return
        latest = sorted(range(len(self.slots)), key=lambda index: -self.slots[index].used)[:keep]
        for place, index in enumerate(sorted(latest)):
            self._swap(index, place)
        cache.release(keep)
        del self.slots[keep:]

    # Searches

    def _admit_search(self) -> bool:
        """Starts a search for the first waiting sequence and those behind it that ask for the same."""
        first = self.waiting[0]
        most = max((self.max_rows - self.rows) // first.params.rows, 0 if self.rows else 1)
        rows: list[SequenceState] = []
        with self._queue:
            while self.waiting and len(rows) < most:
                other = self.waiting[0]
                adapters = [*(row.adapter for row in rows), other.adapter]
                if (other.params, other.end_ids) != (first.params, first.end_ids) or not self.runner.can_share(
                    adapters
                ):
                    break
                rows.append(self.waiting.popleft())
        if rows:
            self._starting = rows
            self.searches.append(self._new_search(rows))
            self._starting = []
        return bool(rows)

    def _new_search(self, rows: Sequence[SequenceState]) -> Search:
        params = rows[0].params
        if params.penalty_alpha:
            return ContrastiveSearch(self.runner, rows, self.chooser)
        if params.guidance_scale != 1:
            return GuidedSearch(self.runner, rows, self.chooser)
        check = (lambda ids: self.is_stopped(ids, params)) if params.stop else None
        return BeamSearch(self.runner, rows, self.chooser, stopped=check)

    def _search(self) -> None:
        """One step of every search. One that fails is tried again with each of its sequences alone."""
        for search in list(self.searches):
            rows = list(search.rows)
            try:
                search.step()
            except QuatrainError as error:
                self.searches.remove(search)
                rest = [row for row in rows if not row.done]
                if len(rows) > 1:
                    self.searches += [self._new_search([row]) for row in rest]
                elif rest:
                    self._finish(rest[0], "error", error)
                continue
            for row in rows:
                if (row.ids or row.finished is not None) and not row.done:
                    self._publish(row)
        self.searches = [search for search in self.searches if search.rows]


def _tokens_of(sequence: SequenceState) -> list[int]:
    """What the decoder reads of a sequence until its next token is chosen."""
    return [*sequence.prefix, *sequence.ids]


def _key_of(sequence: SequenceState) -> Key:
    is_told = sequence.decoder_prompt is not None or sequence.features is not None
    return sequence.adapter, sequence.source_key if is_told else None


def _share(one: Sequence[int], other: Sequence[int], count: int) -> bool:
    """Whether the first `count` tokens of two texts exist and are equal. Most texts differ in the last of these."""
    return (
        len(one) >= count <= len(other)
        and (not count or one[count - 1] == other[count - 1])
        and one[:count] == other[:count]
    )


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning of two texts are equal."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:  # The first `low` are equal, the first `high` are not.
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
