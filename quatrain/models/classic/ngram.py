"""n-gram language models: the next token given the last n - 1, from counts.

    model = NgramModel.fit(ids, vocab_size=65, order=5, smoothing="modified_kneser_ney")
    model.text_loss(held_out)          # nats per token
    Engine(model, tokenizer).generate(["ROMEO:"])

Every smoothing method gives one probability for each n-gram that was seen and one weight for each context
(`_smoothing`), so that one model holds them all, and ARPA files too. Its "hidden state" is the history: the last n - 1
tokens, from which `lm_logits` computes the log-probabilities of all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing
from quatrain.models.classic import _counts
from quatrain.models.classic._counts import Array, NgramCounts, Table
from quatrain.models.classic._smoothing import METHODS, Estimate, SmoothingOptions, estimate
from quatrain.models.classic.base import ClassicConfig, StateModel

PARTS = ("keys", "counts", "log_probs", "log_weights")
"""Tensors of each order."""
BLOCK = 1_000_000
"""Tokens whose losses are computed at once."""
NO_TOKEN = -1
"""Before the beginning of a text."""


class NgramConfig(ClassicConfig):
    """The configuration of an n-gram model; its tensors hold the n-grams.

    `details` are the discounts or weights of each order, and `root` is the weight of the uniform distribution below the
    single tokens. `direct`: what was not seen has the same probability for all tokens, and no shorter context is asked.
    """

    model_type: Literal["ngram"] = "ngram"
    head: Literal["causal"] = "causal"
    order: int = Field(ge=1, le=100)
    smoothing: str
    tokens: int = Field(default=0, ge=0)
    ngrams: Listing[int] = ()
    details: Listing[dict[str, float]] = ()
    direct: bool = False


class NgramModel(StateModel):
    """An n-gram model. Build one with `fit`, `from_counts`, or from an ARPA file (`quatrain.models.arpa`)."""

    Config: ClassVar[type[ClassicConfig]] = NgramConfig
    compares_hidden_states: ClassVar[bool] = False
    config: NgramConfig

    def __init__(self, config: NgramConfig, tensors: Mapping[str, Tensor]):
        super().__init__(config)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    # Building

    @staticmethod
    def plan(tokens: int, vocab_size: int, order: int, *, chunk: int = _counts.CHUNK) -> _counts.CountPlan:
        """The most n-grams, memory and disk that `fit` takes for any text of so many tokens."""
        return _counts.plan(tokens, vocab_size, order, chunk)

    @classmethod
    def fit(
        cls,
        ids: Sequence[int] | Array,
        vocab_size: int,
        order: int = 5,
        smoothing: str = "modified_kneser_ney",
        *,
        min_counts: Sequence[int] = (),
        options: SmoothingOptions | None = None,
        chunk: int = _counts.CHUNK,
        progress: Callable[[int], None] = lambda done: None,
        **config: Any,
    ) -> Self:
        """Counts the n-grams of ids (N,) and smooths them.

        `min_counts[k - 1]` is the least count of an n-gram of `k` tokens that stays. `config` are further fields of
        `NgramConfig`, such as `bos_token_id`: it is never predicted, and no n-gram reaches over it. Raises InputError.
        """
        array = np.asarray(ids)
        _counts.check_plan(_counts.expect(array, vocab_size, order, chunk, bos_id=config.get("bos_token_id")))
        counted = _counts.count(
            array, vocab_size, order, bos_id=config.get("bos_token_id"), chunk=chunk, progress=progress
        )
        return cls.from_counts(counted, smoothing, min_counts=min_counts, options=options, **config)

    @classmethod
    def from_counts(
        cls,
        counts: NgramCounts,
        smoothing: str = "modified_kneser_ney",
        *,
        min_counts: Sequence[int] = (),
        options: SmoothingOptions | None = None,
        **config: Any,
    ) -> Self:
        """The model of counts, smoothed by a method of `METHODS`."""
        estimated = estimate(counts, smoothing, options)
        if any(number > 1 for number in min_counts):
            counts, estimated = _pruned(counts, estimated, min_counts)
        return cls.from_estimate(counts, estimated, smoothing=smoothing, **config)

    @classmethod
    def from_estimate(cls, counts: NgramCounts, estimated: Estimate, **config: Any) -> Self:
        """The model with these probabilities and weights."""
        tensors = {}
        with np.errstate(divide="ignore"):
            for order, table in enumerate(counts.tables, 1):
                values = (
                    table.keys,
                    table.counts,
                    np.log(estimated.probabilities[order - 1]).astype(np.float32),
                    np.log(estimated.weights[order - 1]).astype(np.float32),
                )
                for part, value in zip(PARTS, values, strict=True):
                    tensors[f"order_{order}.{part}"] = torch.from_numpy(np.ascontiguousarray(value))
        settings: dict[str, Any] = {
            "order": counts.order,
            "vocab_size": counts.vocab_size,
            "tokens": counts.tokens,
            "ngrams": tuple(len(table) for table in counts.tables),
            "details": tuple(estimated.details),
            "direct": estimated.direct,
            "bos_token_id": counts.bos_id,
        }
        return cls(NgramConfig(**(settings | config)), tensors).eval()

    @classmethod
    def from_tensors(cls, config: NgramConfig, tensors: Mapping[str, Tensor]) -> Self:
        """The model of a configuration and its tensors. Raises InputError for tensors that do not fit it."""
        wanted = {f"order_{order}_{part}" for order in range(1, config.order + 1) for part in PARTS}
        problems = [f"{name}: missing" for name in sorted(wanted - set(tensors))]
        problems += [f"{name}: unexpected" for name in sorted(set(tensors) - wanted)]
        if not problems:
            for order in range(1, config.order + 1):
                sizes = {len(tensors[f"order_{order}_{part}"]) for part in PARTS}
                keys = tensors[f"order_{order}_keys"]
                if len(sizes) > 1:
                    problems.append(f"order {order}: tensors of different lengths {sorted(sizes)}")
                elif len(keys) > 1 and not bool((keys[1:] > keys[:-1]).all()):
                    problems.append(f"order_{order}_keys: not sorted")
            if len(tensors["order_1_keys"]) != config.vocab_size:
                problems.append(f"order_1_keys: {len(tensors['order_1_keys'])}; vocab_size is {config.vocab_size}")
        if problems:
            raise InputError("The tensors of this n-gram model do not fit its config.json:", problems)
        return cls(config, tensors)

    # Tables

    def part(self, order: int, part: str) -> Array:
        """One of the `PARTS` of the n-grams of an order, without a copy."""
        tensor: Tensor = getattr(self, f"order_{order}_{part}")
        return tensor.cpu().numpy()

    def _table(self, order: int) -> Table:
        keys = self.part(order, "keys")
        return Table(keys, keys, keys)

    def _places(self, histories: Array) -> list[Array]:
        """The places of the contexts of 0, 1, … tokens that end each history (N, n - 1); -1 where one is not known."""
        count, width = histories.shape
        found = [np.zeros(count, dtype=np.int64)]
        for length in range(1, width + 1):
            place = histories[:, width - length].copy()
            for order in range(2, length + 1):
                word = histories[:, width - length + order - 1]
                place = np.where(place < 0, -1, self._table(order).find(place * self.config.vocab_size + word))
            found.append(place)
        return found

    # Probabilities

    def log_probs(self, histories: Array) -> Array:
        """ln p of every token after each history of ids (N, n - 1), -1 before the beginning: (N, V) float32."""
        size = self.config.vocab_size
        places = self._places(histories)
        result = np.repeat(self.part(1, "log_probs")[None], len(histories), axis=0)
        if self.config.direct:
            return self._direct(histories, places, result)
        for length in range(1, histories.shape[1] + 1):
            rows = np.flatnonzero(places[length] >= 0)
            if not len(rows):
                continue
            context = places[length][rows]
            result[rows] += self.part(length, "log_weights")[context, None]
            self._fill(result, rows, context, length + 1, size)
        return result

    def _fill(self, result: Array, rows: Array, context: Array, order: int, size: int) -> None:
        """Puts the probabilities of the n-grams that continue each context into its row."""
        keys, values = self.part(order, "keys"), self.part(order, "log_probs")
        starts, ends = np.searchsorted(keys, context * size), np.searchsorted(keys, (context + 1) * size)
        for row, start, end in zip(rows, starts, ends, strict=True):
            result[row, keys[start:end] % size] = values[start:end]

    def _direct(self, histories: Array, places: list[Array], result: Array) -> Array:
        """Of models that ask no shorter context: the longest context that the text has, and below it 1 / V."""
        size = self.config.vocab_size
        known = (histories >= 0).sum(axis=1)
        uniform = np.full(size, -math.log(self._predicted), dtype=np.float32)
        if self.config.bos_token_id is not None:
            uniform[self.config.bos_token_id] = -np.inf
        for length in range(1, histories.shape[1] + 1):
            rows = np.flatnonzero(known == length)
            result[rows] = uniform
            rows = rows[places[length][rows] >= 0]
            context = places[length][rows]
            result[rows] += self.part(length, "log_weights")[context, None]
            self._fill(result, rows, context, length + 1, size)
        return result

    @property
    def _predicted(self) -> int:
        return self.config.vocab_size - (self.config.bos_token_id is not None)

    def token_log_probs(self, ids: Array, start: int = 0) -> Array:
        """ln p of each token of a text of ids (N,) from place `start` on, given all before it: (N - start,) float32."""
        order, size = self.config.order, self.config.vocab_size
        ids = np.asarray(ids).astype(np.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise InputError(f"The text has tokens outside the model's vocabulary of {size:,}.")
        places = [np.zeros(len(ids), dtype=np.int64), ids]  # By length, the n-gram that ends at each token.
        for length in range(2, order + 1):
            before = np.concatenate([[NO_TOKEN], places[-1][:-1]])
            known = before >= 0
            found = np.full(len(ids), -1, dtype=np.int64)
            found[known] = self._table(length).find(before[known] * size + ids[known])
            places.append(found)
        result = np.zeros(len(ids), dtype=np.float64)
        open_rows = np.arange(len(ids))  # Tokens whose n-gram of some length is still looked for.
        for length in range(order, 0, -1):
            found = places[length][open_rows]
            hit = found >= 0
            result[open_rows[hit]] += self.part(length, "log_probs")[found[hit]]
            open_rows = open_rows[~hit]
            if length == 1 or not len(open_rows):
                break
            first = open_rows == 0
            context = np.where(first, -1, places[length - 1][np.maximum(open_rows - 1, 0)])
            weighed = context >= 0
            result[open_rows[weighed]] += self.part(length - 1, "log_weights")[context[weighed]]
            if self.config.direct:
                # The longest context that the text has decides; nothing shorter is asked.
                long_enough = open_rows >= length - 1
                result[open_rows[long_enough]] -= math.log(self._predicted)
                open_rows = open_rows[~long_enough]
        return result[start:].astype(np.float32)

    def text_loss(self, ids: Array) -> tuple[float, int]:
        """The summed loss in nats of all tokens but the first, and their number. Blocks overlap by a context."""
        total, count = 0.0, max(len(ids) - 1, 0)
        before = self.config.order - 1
        for start in range(1, len(ids), BLOCK):
            first = max(0, start - before)
            total -= float(self.token_log_probs(ids[first : start + BLOCK], start - first).astype(np.float64).sum())
        return total, count

    # Language model

    def start(self, count: int, sources: Sequence[Sequence[int]] | None = None) -> list[Any]:
        return [(NO_TOKEN,) * (self.config.order - 1)] * count

    def advance(self, states: Sequence[Any], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[Any]]:
        before, width = self.config.order - 1, max(map(len, tokens))
        texts = np.full((len(tokens), before + width), NO_TOKEN, dtype=np.int64)
        after = []
        for row, (state, ids) in enumerate(zip(states, tokens, strict=True)):
            texts[row, : before + len(ids)] = [*state, *ids]
            after.append(tuple(texts[row, len(ids) : len(ids) + before].tolist()))
        if not before:
            return torch.zeros(len(tokens), width, 0, dtype=torch.long), after
        histories = np.lib.stride_tricks.sliding_window_view(texts[:, 1:], before, axis=1)
        return torch.from_numpy(histories.copy()), after

    def lm_logits(self, hidden: Tensor, owners: Tensor | None = None) -> Tensor:
        """Histories (…, n - 1) to log-probabilities (…, V); -inf for what cannot follow."""
        histories = hidden.reshape(hidden.shape[:-1].numel(), self.config.order - 1).cpu().numpy()
        return torch.from_numpy(self.log_probs(histories)).view(*hidden.shape[:-1], -1)

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        histories = hidden.reshape(len(labels), self.config.order - 1).cpu().numpy()
        words = labels.cpu().numpy()
        known = words >= 0
        result = np.zeros(len(words), dtype=np.float32)
        result[known] = -self._log_probs_of(histories[known], words[known])
        return torch.from_numpy(result)

    def _log_probs_of(self, histories: Array, words: Array) -> Array:
        """ln p of one token (N,) after each history (N, n - 1)."""
        size, places = self.config.vocab_size, self._places(histories)
        result = np.zeros(len(words), dtype=np.float64)
        rows = np.arange(len(words))  # Those whose n-gram of some length is still looked for.
        available = (histories >= 0).sum(axis=1)
        for length in range(histories.shape[1], -1, -1):
            context = places[length][rows]
            found = np.where(context >= 0, self._table(length + 1).find(context * size + words[rows]), -1)
            hit = found >= 0
            result[rows[hit]] += self.part(length + 1, "log_probs")[found[hit]]
            rows, context = rows[~hit], context[~hit]
            if not len(rows) or not length:
                break
            weighed = context >= 0
            result[rows[weighed]] += self.part(length, "log_weights")[context[weighed]]
            if self.config.direct:
                ends = available[rows] == length
                result[rows[ends]] -= math.log(self._predicted)
                rows = rows[~ends]
        return result

    # Facts

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Stored probabilities and weights; none of them trains by gradient."""
        return 0 if trainable else 2 * sum(self.config.ngrams)

    def describe(self) -> dict[str, Any]:
        """The sparse counts beside the dense matrix that they stand for."""
        size = self.config.vocab_size
        rows = [
            {
                "n": order,
                "possible": size**order,
                "seen": seen,
                "share": seen / size**order,
            }
            | (self.config.details[order - 1] if order <= len(self.config.details) else {})
            for order, seen in enumerate(self.config.ngrams, 1)
        ]
        return {
            "order": self.config.order,
            "smoothing": self.config.smoothing,
            "vocabulary": size,
            "tokens counted": self.config.tokens,
            "numbers of a full table": size**self.config.order,
            "numbers stored": self.num_parameters(),
            "n-grams": rows,
        }


def _pruned(counts: NgramCounts, estimated: Estimate, min_counts: Sequence[int]) -> tuple[NgramCounts, Estimate]:
    """Drops rare n-grams; what they had goes to the shorter contexts, by new weights."""
    if estimated.direct:
        raise InputError("min_counts: add_k asks no shorter context, so that no n-gram can be left out")
    kept_counts = counts.pruned(min_counts)
    probabilities, weights = [estimated.probabilities[0]], []
    masks = [np.ones(len(counts.tables[0]), dtype=bool)]
    for order in range(2, counts.order + 1):
        own = counts.tables[order - 1]
        parent, size = masks[-1], counts.vocab_size
        places = np.cumsum(parent) - 1
        keys = np.where(parent[own.keys // size], places[own.keys // size] * size + own.keys % size, -1)
        mask = kept_counts.tables[order - 1].find(keys) >= 0
        probabilities.append(estimated.probabilities[order - 1][mask])
        table, contexts = kept_counts.tables[order - 1], kept_counts.contexts(order)
        length = len(kept_counts.tables[order - 2])
        seen = np.bincount(contexts, weights=probabilities[-1], minlength=length)
        shorter = np.bincount(contexts, weights=probabilities[-2][table.suffix], minlength=length)
        touched = np.bincount(contexts, minlength=length) < _children(counts, order)[masks[-1]]
        old = estimated.weights[order - 2][masks[-1]]
        weights.append(np.where(touched, np.maximum(1 - seen, 0) / np.maximum(1 - shorter, 1e-12), old))
        masks.append(mask)
    weights.append(np.ones(len(probabilities[-1])))
    return kept_counts, Estimate(probabilities, weights, estimated.root, estimated.details)


def _children(counts: NgramCounts, order: int) -> Array:
    """How many n-grams of `order` tokens continue each context."""
    return np.bincount(counts.contexts(order), minlength=len(counts.tables[order - 2]))


def method_names() -> tuple[str, ...]:
    """The names of all smoothing methods."""
    return tuple(METHODS)


def options_of(settings: Mapping[str, Any]) -> SmoothingOptions:
    """Smoothing options from a table of settings."""
    return SmoothingOptions(**{name: settings[name] for name in asdict(SmoothingOptions()) if name in settings})


MODEL = NgramModel
