"""Words that a completion must contain: which tokens lead to them, and which hypotheses of a beam search stay.

Lexically constrained decoding (Hokamp and Liu 2017, arXiv 1704.07138) with dynamic beam allocation (Post and Vilar
2018, arXiv 1804.06609): hypotheses are put into banks by how much of the words they contain, and the best of every bank
survive, so that a hypothesis with more of the words is not displaced by likelier ones with less. A word may have
alternatives (Hu et al. 2019, arXiv 1901.10995), one of which is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
