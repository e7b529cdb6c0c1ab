"""Speculative decoding: tokens are guessed cheaply, and the model reads several guesses in one pass.

Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318): a small model drafts tokens, the large
one accepts or replaces them so that greedy ids are unchanged and samples follow the large model's own distribution.
Guesses may also come from the text itself (Yang et al. 2023, "Inference with Reference", arXiv 2304.04487): answers
often repeat parts of their prompts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.generation.filters import draw, processors
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import context_limit
from quatrain.generation.states import make_runner
from quatrain.generation.text import TokenizerLike
from quatrain.models.kernels.decode import NativeUse
from quatrain.models.transformer.stack import Model

PART = 512
"""Tokens of a prompt that a draft model reads at once."""


@dataclass
class Proposal:
    """Guesses of a sequence's next tokens.

    `probabilities` are the distributions (V,) in float64 that they were drawn from; None if they were not drawn.
    """

    tokens: list[int] = field(default_factory=list)
    probabilities: list[Tensor] | None = None


class Proposer(Protocol):
    """Guesses tokens for speculative decoding."""

    count: int
    """The most guesses for one sequence at a time."""
    draws: bool
    """Whether guesses for sequences that sample are drawn from distributions."""

    def check(self, model: Model, tokenizer: TokenizerLike | None) -> None:
        """Raises InputError, all problems at once, if the guesses cannot serve this model."""

    def propose(self, rows: Sequence[SequenceState], counts: Sequence[int]) -> list[Proposal]:
        """At most so many guesses for each sequence. Sequences that are not among the rows have left."""


def check_rewinds(model: Model) -> None:
    """Raises InputError for a model whose state cannot take back the tokens of a wrong guess."""
    if getattr(model.config, "recurs", False):
        raise InputError(
            f"Speculative decoding takes back wrong guesses, and the state of a {model.config.family} model cannot go "
            "back; leave the speculation out. Such a model can be the draft model of another."
        )


class PromptLookup:
    """Guesses that the text goes on as it did after the last tokens were seen before, in the prompt or the completion.

    The longest match counts, of at most `max_ngram` and at least `min_ngram` tokens, and of these the latest.
    """

    def __init__(self, count: int = 8, *, max_ngram: int = 3, min_ngram: int = 2):
        """`count` is the most tokens that are guessed at once."""
        if count < 1 or not 1 <= min_ngram <= max_ngram:
            raise InputError(
                f"prompt look-up: count {count}, min_ngram {min_ngram}, max_ngram {max_ngram}; all must be at least 1, "
                "and min_ngram at most max_ngram"
            )
        self.count, self.draws, self.sizes = count, False, range(max_ngram, min_ngram - 1, -1)
        self._indices: WeakKeyDictionary[SequenceState, _Index] = WeakKeyDictionary()

    def check(self, model: Model, tokenizer: TokenizerLike | None) -> None:
        """Serves every model."""

    def propose(self, rows: Sequence[SequenceState], counts: Sequence[int]) -> list[Proposal]:
        found = []
        for row, count in zip(rows, counts, strict=True):
            index = self._indices.get(row)
            if index is None:
                index = self._indices[row] = _Index(list(row.prompt))
            index.extend(row.ids[len(index.text) - len(row.prompt) :], self.sizes)
            found.append(Proposal(index.continuation(self.sizes, count)))
        return found


class _Index:
    """Where in a text each sequence of a few tokens ended last, but for its end; it grows with the text."""

    def __init__(self, text: list[int]):
        self.text, self._done = text, 0
        self._ends: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int], sizes: range) -> None:
        self.text += tokens
        for end in range(self._done + 1, len(self.text)):
            for size in sizes:
                if size <= end:
                    self._ends[tuple(self.text[end - size : end])] = end
        self._done = max(len(self.text) - 1, 0)

    def continuation(self, sizes: range, count: int) -> list[int]:
        for size in sizes:
            end = self._ends.get(tuple(self.text[-size:])) if size <= len(self.text) else None
            if end is not None:
                return self.text[end : end + count]
        return []


class DraftModel:
    """Guesses with a smaller model that has the same vocabulary.

    It draws from its own distribution under the sequence's temperature and filters. Its KV cache follows the sequences.
    """

    def __init__(
        self, model: Model, tokenizer: TokenizerLike | None = None, *, count: int = 4, native: NativeUse = None
    ):
        """`tokenizer` is compared with that of the model which it serves. `native` as for `Engine`."""
        if count < 1:
            raise InputError(f"draft model: count {count}; must be at least 1")
        self.runner, self.tokenizer, self.count = make_runner(model.eval(), native=native), tokenizer, count
        self.draws = True
        self.rows: list[SequenceState] = []
        """The sequence in each slot."""
        self._texts: list[list[int]] = []
        """The tokens that each slot holds."""

    def check(self, model: Model, tokenizer: TokenizerLike | None) -> None:
        own = self.runner.model.config
        problems = []
        if own.architecture != "decoder" or own.head != "causal" or model.config.architecture != "decoder":
            problems.append("draft model: both models must be decoders with a causal head")
        if own.vocab_size != model.config.vocab_size:
            problems.append(
                f"draft model: has a vocabulary of {own.vocab_size}, the model one of {model.config.vocab_size}; take "
                "a draft model of the same family"
            )
        elif self.tokenizer is not None and tokenizer is not None:
            problems += _differences(self.tokenizer, tokenizer, own.vocab_size)
        if self.runner.original_length is not None:
            problems.append("draft model: has rotary frequencies that depend on the length of the text")
        if problems:
            raise InputError("This draft model cannot be used:", problems)

    @torch.inference_mode()
    def propose(self, rows: Sequence[SequenceState], counts: Sequence[int]) -> list[Proposal]:
        limit = context_limit(self.runner.model)
        served = [
            row
            for row, count in zip(rows, counts, strict=True)
            if count > 0 and (limit is None or len(row.prompt) + len(row.ids) + self.count <= limit)
        ]
        self._hold(served)
        if not self.rows:
            return [Proposal() for _ in rows]
        wanted = dict(zip(rows, counts, strict=True))
        proposals = {row: Proposal([], [] if row.params.temperature else None) for row in self.rows}
        logits = self._read(self._catch_up())
        most = max(wanted[row] for row in self.rows)
        for step in range(most):
            tokens = self._draw(logits.float(), proposals)
            if step + 1 < most:
                logits = self._read([[token] for token in tokens])
        for row, proposal in proposals.items():
            del proposal.tokens[wanted[row] :]
        return [proposals.get(row, Proposal()) for row in rows]

    def _hold(self, rows: Sequence[SequenceState]) -> None:
        """Gives slots to exactly these sequences; those that stay keep what is stored of them."""
        cache, staying = self.runner.cache, set(rows)
        for slot in reversed(range(len(self.rows))):
            if self.rows[slot] not in staying:
                last = len(self.rows) - 1
                cache.swap(slot, last)
                self.rows[slot], self._texts[slot] = self.rows[last], self._texts[last]
                del self.rows[last], self._texts[last]
        present = set(self.rows)
        new = [row for row in rows if row not in present]
        if new:
            self.runner.refresh()
            cache.reserve(slots=len(self.rows) + len(new))
        for row in new:
            cache.truncate(len(self.rows), 0)
            self.rows.append(row)
            self._texts.append([])
        if not self.rows and cache.slots:
            cache.release(0)

    def _catch_up(self) -> list[list[int]]:
        """Takes back rejected guesses; returns the tokens that each slot has not read, at least one."""
        cache, unread = self.runner.cache, []
        for slot, row in enumerate(self.rows):
            text, stored = [*row.prompt, *row.ids], self._texts[slot]
            same = min(len(stored), len(text) - 1)
            while stored[:same] != text[:same]:  # only the last few can differ
                same -= 1
            same = same if cache.can_truncate(slot, same) else 0
            cache.truncate(slot, same)
            self._texts[slot] = text[:same]
            rest = text[same:]
            while len(rest) > self.count + 1:
                part = rest[: min(PART, len(rest) - 1)]
                self.runner.read(slot, [part], adapters=[None])
                self._texts[slot] += part
                rest = rest[len(part) :]
            unread.append(rest)
        return unread

    def _read(self, tokens: list[list[int]]) -> Tensor:
        logits = self.runner.read(0, tokens, adapters=[None] * len(tokens), decoding=True)
        for text, ids in zip(self._texts, tokens, strict=True):
            text += ids
        return logits

    def _draw(self, logits: Tensor, proposals: dict[SequenceState, Proposal]) -> list[int]:
        """Adds a token to each proposal: the likeliest, or one drawn with noise of its own."""
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        for slot, row in enumerate(self.rows):
            proposal = proposals[row]
            if proposal.probabilities is not None:
                values = logits[slot : slot + 1]
                for process in processors(row.params):
                    values = process(values)
                noise = _uniform(row, "draft", len(row.ids) + len(proposal.tokens))
                tokens[slot] = int(draw(values, torch.tensor([noise], device=values.device)))
                proposal.probabilities.append(values[0].softmax(dim=-1, dtype=torch.float64))
            proposal.tokens.append(tokens[slot])
        return tokens


def accept_or_replace(logits: Tensor, token: int, probabilities: Tensor, row: SequenceState) -> int:
    """The token that rejection sampling takes: the guess, or one drawn from what the guess leaves of the distribution.

    logits (V,) are the model's, after all constraints and filters; `probabilities` (V,) those that `token` was drawn
    from. The guess x is accepted with probability min(1, p(x) / q(x)), else a token is drawn from max(p - q, 0).
    """
    own = logits.softmax(dim=-1, dtype=torch.float64)
    index = len(row.ids)
    if _uniform(row, "accept", index) * float(probabilities[token]) < float(own[token]):
        return token
    rest = (own - probabilities).clamp(min=0)
    if float(rest.sum()) <= 0:  # The distributions are equal up to rounding.
        rest = own
    return int(draw(rest.log()[None], torch.tensor([row.noise(index)], dtype=torch.float64, device=rest.device)))


def _uniform(row: SequenceState, purpose: str, index: int) -> float:
    """A random number in [0, 1) that depends on the sequence's seed, the purpose and the place of a token."""
    return random.Random(f"{row.seed} {purpose} {index}").random()


def _differences(one: TokenizerLike, other: TokenizerLike, size: int) -> Iterator[str]:
    """The first token, if any, that two tokenizers write differently."""
    for token in range(size):
        ours, theirs = (each.decode([token], skip_special_tokens=False) for each in (one, other))
        if ours != theirs:
            yield (
                f"draft model: token {token} is {ours!r} in its tokenizer and {theirs!r} in the model's; take a draft "
                "model with the same tokenizer"
            )
            return
