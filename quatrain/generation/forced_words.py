"""Words that a completion must contain: which tokens lead to them, and which hypotheses of a beam search stay.

Lexically constrained decoding (Hokamp and Liu 2017, arXiv 1704.07138) with dynamic beam allocation (Post and Vilar
2018, arXiv 1804.06609): hypotheses are put into banks by how much of the words they contain, and the best of every bank
survive, so that a hypothesis with more of the words is not displaced by likelier ones with less. A word may have
alternatives (Hu et al. 2019, arXiv 1901.10995), one of which is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.generation.requests import SequenceState

USABLE = -5.0e8
"""Scores below it are those of hypotheses that have ended or do not exist."""


@dataclass(frozen=True)
class Progress:
    """How much of the forced words a hypothesis contains."""

    met: frozenset[int] = frozenset()
    """The words, by number, that it contains."""
    tail: tuple[int, ...] = ()
    """Its last tokens, as many as can be the beginning of a word."""


class ForcedWords:
    """Words, each a sequence of token ids or several alternative ones, that a completion must contain."""

    def __init__(self, words: Sequence[Sequence[Sequence[int]]]):
        self.words = [[tuple(alternative) for alternative in word] for word in words]
        self.tokens = frozenset(token for word in self.words for alternative in word for token in alternative)
        """The tokens of all words; every other token leads to none."""
        self._shortest = [min(map(len, word)) for word in self.words]
        self._longest = max((len(alternative) for word in self.words for alternative in word), default=0)
        self.size = sum(self._shortest)
        """The most tokens that any hypothesis still needs."""

    def step(self, progress: Progress, token: int) -> Progress:
        """The progress after one more token."""
        tail = (*progress.tail, token)[-self._longest :]
        ended = {
            number
            for number, word in enumerate(self.words)
            if number not in progress.met and any(tail[-len(each) :] == each for each in word)
        }
        return Progress(progress.met | ended, tail)

    def remaining(self, progress: Progress) -> int:
        """How many tokens are enough to meet all words: those of the shortest alternatives of unmet words, less what
        is already there of one of them. Some next token always lowers it.
        """
        unmet = [number for number in range(len(self.words)) if number not in progress.met]
        gains = [
            self._shortest[number] - len(each) + _overlap(progress.tail, each)
            for number in unmet
            for each in self.words[number]
        ]
        return sum(self._shortest[number] for number in unmet) - max(gains, default=0)

    def remaining_after_others(self, progress: Progress) -> int:
        """`remaining` after a token that is in no word."""
        return sum(size for number, size in enumerate(self._shortest) if number not in progress.met)

    def leading(self, progress: Progress, remaining: int) -> list[int]:
        """The tokens after which at most `remaining` tokens are enough, of those that are in some word."""
        return [token for token in sorted(self.tokens) if self.remaining(self.step(progress, token)) <= remaining]


def _overlap(tail: tuple[int, ...], word: tuple[int, ...]) -> int:
    """The most tokens, but not all, of a word's beginning with which the tail ends."""
    for length in range(min(len(tail), len(word) - 1), 0, -1):
        if tail[-length:] == word[:length]:
            return length
    return 0


def allocate(scores: Sequence[float], banks: Sequence[int], count: int) -> list[int]:
    """Which candidates survive, best first: the best of each bank, then the second best of each, and so on.

    Banks with more of the words come first.
    """
    by_score = sorted(range(len(scores)), key=lambda place: -scores[place])
    ranks: dict[int, int] = {}
    order = []
    for place in by_score:
        bank = banks[place]
        order.append((ranks.get(bank, 0), -bank, place))
        ranks[bank] = ranks.get(bank, 0) + 1
    survivors = [place for _, _, place in sorted(order)[:count]]
    return sorted(survivors, key=lambda place: -scores[place])


class ForcedWordSearch:
    """The part of a beam search that makes every hypothesis contain the forced words: candidates and survivors."""

    def __init__(self, words: ForcedWords, parts: int, beams: int):
        self.words = words
        self.progress = [[Progress()] * beams for _ in range(parts)]
        """Of each beam of each part of the search."""

    @classmethod
    def of(cls, words: ForcedWords | None, sequences: Sequence[SequenceState], beams: int) -> ForcedWordSearch | None:
        """The search for these words; None without any. Raises InputError if a sequence has no room for them."""
        if words is None:
            return None
        short = min(row.limit for row in sequences)
        if words.size > short:
            raise InputError(f"force_words: need at least {words.size} tokens, and there is room for {short}")
        return cls(words, len(sequences), beams)

    def best(self, sums: Tensor, count: int, ends: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """Values and places (B, K) of candidates among sums (B, beams · V): the best `count`, best first, then those
        that lead to a word and the best of each beam; -inf where a part has fewer.

        `room` (B,) is the number of tokens that fit, the next one included. A token after which the words do not fit
        any more is no candidate, nor is an end token before all words are met.
        """
        sums, beams = sums.clone(), len(self.progress[0])
        vocabulary = sums.shape[1] // beams
        more: list[list[int]] = []
        for part, row in enumerate(self.progress):
            leading: set[int] = set()
            for beam, progress in enumerate(row):
                own = sums[part, beam * vocabulary : (beam + 1) * vocabulary]
                remaining, left = self.words.remaining(progress), int(room[part]) - 1
                if remaining:
                    own[ends[ends < vocabulary]] = float("-inf")
                    tokens = self.words.leading(progress, remaining - 1)
                    if self.words.remaining_after_others(progress) > left:
                        fitting = self.words.leading(progress, left)
                        kept = own[fitting].clone()
                        own.fill_(float("-inf"))
                        own[fitting] = kept
                    leading |= {beam * vocabulary + token for token in tokens}
                leading.add(beam * vocabulary + int(own.argmax()))
            more.append([place for place in sorted(leading) if float(sums[part, place]) > USABLE])
        values, places = sums.topk(count, dim=1)
        more = [sorted(set(own) - set(known)) for own, known in zip(more, places.tolist(), strict=True)]
        width = max(map(len, more))
        added = torch.tensor([[*own, *[0] * (width - len(own))] for own in more], dtype=torch.long, device=sums.device)
        there = torch.tensor([[True] * len(own) + [False] * (width - len(own)) for own in more], device=sums.device)
        added_values = sums.gather(1, added).masked_fill(~there.bool(), float("-inf"))
        return torch.cat([values, added_values], dim=1), torch.cat([places, added], dim=1)

    def survivors(self, scores: Tensor, beams: Tensor, tokens: Tensor) -> Tensor:
        """Which candidates (B, beams) survive, best first, and follows their progress.

        `scores`, `beams` and `tokens` (B, K) are those of the candidates.
        """
        chosen = []
        rows = zip(scores.tolist(), beams.tolist(), tokens.tolist(), strict=True)
        for part, (values, owners, ids) in enumerate(rows):
            before = self.progress[part]
            usable = [place for place, value in enumerate(values) if value > USABLE]
            after = {place: self.words.step(before[owners[place]], ids[place]) for place in usable}
            banks = [self.words.size - self.words.remaining(after[place]) for place in usable]
            kept = [usable[place] for place in allocate([values[place] for place in usable], banks, len(before))]
            others = [place for place in range(len(values)) if place not in kept]
            kept += sorted(others, key=lambda place: -values[place])[: len(before) - len(kept)]
            self.progress[part] = [after.get(place, before[owners[place]]) for place in kept]
            chosen.append(kept)
        return torch.tensor(chosen, device=scores.device)

    def keep(self, parts: Sequence[int]) -> None:
        """Drops all other parts of the search."""
        self.progress = [self.progress[part] for part in parts]
