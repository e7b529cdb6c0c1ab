"""Where generated ids become text: stop strings that cross token borders, and pieces of text that are safe to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
"""What a decoder shows for bytes that are no whole UTF-8 character, perhaps not yet."""


class Codec(Protocol):
    """The part of a tokenizer that the engine uses."""

    @property
    def bos_id(self) -> int | None:
        """The beginning token."""

    @property
    def eos_id(self) -> int | None:
        """The end token."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end what a model says."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Text to ids."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Ids to text."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its written form."""


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins in a text; None where there is none."""
    places = [place for place in (text.find(string) for string in stop) if place >= 0]
    return min(places) if places else None


def ends_with_stop(tokenizer: Codec, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the newest token may have completed a stop string, judged by a window of the last tokens.

    The window makes the cost of a token independent of the length of the completion. Every token is at least a
    byte, and some tokens before it keep a decoder that treats the first one differently from hiding a match.
    """
    window = max(len(string.encode()) for string in stop) + 8
    return find_stop(tokenizer.decode(ids[-window:]), stop) is not None


def stopped(tokenizer: Codec, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the text of these ids holds a stop string, where the newest id may have completed one."""
    return ends_with_stop(tokenizer, ids, stop) and find_stop(tokenizer.decode(ids), stop) is not None


def stable_length(text: str, stop: Sequence[str]) -> int:
    """How much of a growing text may be shown: no unfinished character at its end, no beginning of a stop string."""
    end = len(text.rstrip(REPLACEMENT))
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text.endswith(string[:length], 0, end):
                end -= length
                break
    return end
