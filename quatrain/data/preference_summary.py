"""Counts that describe preference data: pairs and ties, identical answers, lengths, contradictions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from quatrain.data.messages import content_text
from quatrain.data.records import Message, Preference, RatedAnswer


def shorter_is_chosen(chosen: int, rejected: int) -> float:
    """The score of "the shorter answer wins" for one pair of lengths: 1 if it holds, 0.5 for equal lengths, else 0."""
    return 1.0 if chosen < rejected else 0.5 if chosen == rejected else 0.0


class PreferenceSummary:
    """Adds up the counts; `count` measures the length of a text."""

    def __init__(self, count: Callable[[str], int] = len):
        self.count = count
        self.pairs = self.ties = self.identical = self.contradictions = self.up = self.down = 0
        self.shorter = 0.0
        self.margins: list[float] = []
        self._orders: dict[bytes, bytes] = {}
        self._prompts: set[bytes] = set()

    def tie(self) -> None:
        """Count a row whose answers were judged equal."""
        self.ties += 1

    def add(self, record: Preference | RatedAnswer) -> None:
        """Count a pair or a rated answer."""
        self._prompts.add(_digest(record.prompt))
        if isinstance(record, RatedAnswer):
            self.up += record.label
            self.down += not record.label
            return
        self.pairs += 1
        if record.chosen == record.rejected:
            self.identical += 1
            return
        chosen, rejected = (self.count("\n".join(map(content_text, each))) for each in (record.chosen, record.rejected))
        self.shorter += shorter_is_chosen(chosen, rejected)
        if record.margin is not None:
            self.margins.append(record.margin)
        first, second = _digest(record.chosen), _digest(record.rejected)
        key = _digest(record.prompt) + min(first, second) + max(first, second)
        self.contradictions += self._orders.setdefault(key, first) != first

    def to_dict(self) -> dict[str, Any]:
        """The counts by name; {} if there was nothing. `shorter_wins` is the share of pairs with unequal answers."""
        prompts = {"prompts": len(self._prompts)}
        if self.up or self.down:
            return {"up": self.up, "down": self.down, **prompts}
        if not self.pairs and not self.ties:
            return {}
        different = self.pairs - self.identical
        result: dict[str, Any] = {"pairs": self.pairs, "ties": self.ties, "identical": self.identical, **prompts}
        result["contradictions"] = self.contradictions
        if different:
            result["shorter_wins"] = round(self.shorter / different, 4)
        if self.margins:
            result["mean_margin"] = round(sum(self.margins) / len(self.margins), 4)
        return result


def _digest(messages: list[Message]) -> bytes:
    return hashlib.blake2b(repr(list(messages)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
