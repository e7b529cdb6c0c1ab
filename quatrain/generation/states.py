"""Runs language models that carry a state from token to token: n-grams, recurrent networks.

`StateRunner` does for them what `ModelRunner` does for transformers, so that scheduler, searches and speculative
decoding serve both. A slot holds the tokens of a text and the state after them instead of keys and values. A state
cannot be shortened: where tokens are taken back, the rest is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import ModelRunner, Source, has_encoder
from quatrain.models.kernels.decode import NativeUse
from quatrain.models.modules import weights_version

ENDLESS = 2**60
"""Room of a slot in tokens."""


class StateSlots:
    """The slots of a `StateRunner`, with the interface of `KVCache` as far as the scheduler and searches use it.

    Each slot has its tokens, the state after them (None: they must be read again), and the state at its beginning.
    """

    max_length = ENDLESS
    window = None

    def __init__(self, model: Any, slots: int):
        self.dtype, self.device, self._state_bytes = torch.float32, model.device, model.state_bytes()
        self.tokens: list[list[int]] = []
        self.states: list[Any] = []
        self.origins: list[Any] = []
        self.reserve(slots)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each slot."""
        return [len(tokens) for tokens in self.tokens]

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return self._state_bytes * sum(state is not None for state in self.states)

    def reserve(self, slots: int = 0, length: int = 0) -> None:
        """Adds empty slots up to `slots`."""
        for _ in range(slots - self.slots):
            self.tokens.append([])
            self.states.append(None)
            self.origins.append(None)

    def release(self, slots: int) -> None:
        """Frees all slots but the first `slots`."""
        del self.tokens[slots:], self.states[slots:], self.origins[slots:]

    def can_truncate(self, slot: int, length: int) -> bool:
        """Whether a slot can be shortened: always."""
        return True

    def truncate(self, slot: int, length: int) -> None:
        """Keeps the first `length` tokens of a slot."""
        if length < len(self.tokens[slot]):
            self.tokens[slot] = self.tokens[slot][:length]
            self.states[slot] = None

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        self.tokens[slot], self.states[slot], self.origins[slot] = [], None, None

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a slot. States are immutable, and shared."""
        self.tokens[target] = list(self.tokens[source])
        self.states[target], self.origins[target] = self.states[source], self.origins[source]
        self.truncate(target, length)

    def swap(self, one: int, other: int) -> None:
        """Exchanges two slots."""
        for values in (self.tokens, self.states, self.origins):
            values[one], values[other] = values[other], values[one]

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders slots."""
        chosen = rows.tolist()
        self.tokens = [list(self.tokens[row]) for row in chosen]
        self.states, self.origins = ([values[row] for row in chosen] for values in (self.states, self.origins))


class _NoDecoder:
    """Stands for native code and for steps of fixed shape: the model itself runs every step."""

    decoder: Any = None
    likeliest: Tensor | None = None
    steps = 0

    def __init__(self, model: Any):
        self.model, self.reason = model, f"a {model.config.family} model runs its own steps"
        self.weights_version: Any = None

    def refresh(self) -> None:
        self.weights_version = weights_version(self.model)


class StateRunner(ModelRunner):
    """Reads tokens into slots and returns logits, for a `quatrain.models.classic.base.StateModel`."""

    def __init__(self, model: Any, slots: int = 0):
        self.model: Any = model
        self.device = model.device
        self.has_encoder = has_encoder(model.config)
        self.hidden_states: list[Tensor] | None = None
        self.cache: Any = StateSlots(model, slots)
        self.native: Any = _NoDecoder(model)
        self.static: Any = self.native
        self._scaling, self.original_length = None, None

    def sibling(self, slots: int) -> StateRunner:
        return StateRunner(self.model, slots)

    def slot_bytes(self, slots: int, length: int) -> int:
        return slots * int(self.model.state_bytes())

    def check_memory(self, sequence: SequenceState) -> None:
        """A state of one text always fits."""

    def follow_model(self) -> bool:
        if self.model.device == self.cache.device:
            return False
        self.cache.release(0)
        self.device = self.cache.device = self.model.device
        return True

    @property
    def rounds_inputs(self) -> bool:
        return False

    @torch.inference_mode()
    def read(
        self,
        first: int,
        tokens: Sequence[Sequence[int]],
        *,
        adapters: Sequence[str | None],
        sources: Sequence[Source] | None = None,
        vectors: Sequence[Tensor | None] | None = None,
        text_lengths: Sequence[int] | None = None,
        every: bool = False,
        decoding: bool = False,
    ) -> Tensor:
        """Logits (B, V) after the last token of each row, or with `every` (B, T, V) after each of them."""
        cache, slots = self.cache, range(first, first + len(tokens))
        if sources is not None:
            cache.origins[first : slots.stop] = self.model.start(len(tokens), sources)
        for slot in slots:
            if cache.origins[slot] is None:
                cache.origins[slot] = self.model.start(1)[0]
        for slot in slots:
            if cache.states[slot] is None:
                state = cache.origins[slot]
                if cache.tokens[slot]:
                    state = self.model.advance([state], [cache.tokens[slot]])[1][0]
                cache.states[slot] = state
        hidden, states = self.model.advance(cache.states[first : slots.stop], tokens)
        for slot, ids, state in zip(slots, tokens, states, strict=True):
            cache.tokens[slot] = [*cache.tokens[slot], *ids]
            cache.states[slot] = state
        if self.hidden_states is not None:
            self.hidden_states += [row[: len(ids)] for row, ids in zip(hidden, tokens, strict=True)]
        if not every:
            last = torch.tensor([len(ids) - 1 for ids in tokens], device=hidden.device)
            hidden = hidden[torch.arange(len(tokens), device=hidden.device), last]
        logits: Tensor = self.model.lm_logits(hidden)
        return logits


def make_runner(model: Any, slots: int = 0, native: NativeUse = False, kv_cache: str | None = None) -> ModelRunner:
    """The runner of a model; `native` and `kv_cache` as for `ModelRunner`. Raises InputError for a cache that the model
    does not have.
    """
    if not model.carries_state:
        return ModelRunner(model, slots, native, kv_cache)
    if kv_cache is not None:
        raise InputError(f"kv_cache: a {model.config.family} model carries a state and has no KV cache; leave it out")
    return StateRunner(model, slots)
