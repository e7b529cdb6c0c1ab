"""Where generated ids become text: stop strings that cross token borders, and pieces of text that are safe to show."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

from quatrain.core.errors import InputError
from quatrain.core.reading import shown

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


def whole_ids(prompt: object) -> list[int]:
    """A prompt of token ids. Raises InputError for what is neither a text nor whole numbers."""
    try:
        return [operator.index(token) for token in prompt]  # type: ignore[attr-defined]
    except TypeError as error:
        raise InputError(f"prompt: {shown(prompt)}; must be a text or a list of token ids") from error


def special_id(tokenizer: Codec, text: str) -> int | None:
    """The id of a text that is one of the tokenizer's special tokens."""
    token = tokenizer.token_to_id(text)
    return token if token in tokenizer.special_ids else None


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins in a text; None where there is none."""
    places = [place for place in (text.find(string) for string in stop) if place >= 0]
    return min(places) if places else None


def ends_with_stop(tokenizer: Codec, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the newest token may have completed a stop string, judged by a window of the last tokens.

    The window makes the cost of a token independent of the length of the completion. Tokens before the string keep a
    decoder that treats the first one differently from hiding a match; the window grows over tokens without a text of
    their own, and begins at no token that is one byte of a character.
    """
    width = max(len(string.encode()) for string in stop) + 8
    singles: frozenset[int] = getattr(tokenizer, "byte_ids", frozenset())
    start = max(len(ids) - width, 0)
    while True:
        while start and (ids[start] in singles or ids[start] in tokenizer.special_ids):
            start -= 1
        text = tokenizer.decode(ids[start:])
        if not start or len(text.encode("utf-8", "replace")) >= width - 4:
            return find_stop(text, stop) is not None
        start = max(start - width, 0)


def stopped(tokenizer: Codec, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the text of these ids holds a stop string, where the newest id may have completed one."""
    return ends_with_stop(tokenizer, ids, stop) and find_stop(tokenizer.decode(ids), stop) is not None


class Growing:
    """A completion's text as it grows: what of it may be shown, so that nothing shown has to be taken back."""

    def __init__(self, tokenizer: Codec | None, stop: Sequence[str]):
        """`stop` are strings that end the text and are no part of it."""
        self.tokenizer, self.stop, self.shown = tokenizer, stop, 0

    def more(self, ids: Sequence[int]) -> str:
        """What can be shown beyond what was shown, now that these are the completion's ids, none of them its end."""
        if self.tokenizer is None:
            return ""
        settled = getattr(self.tokenizer, "settled", self.tokenizer.decode)
        text: str = settled(ids)
        safe = stable_length(text, self.stop)
        shown, self.shown = self.shown, max(safe, self.shown)
        return text[shown : self.shown]


def stable_length(text: str, stop: Sequence[str]) -> int:
    """How much of a growing text may be shown: no unfinished character at its end, no beginning of a stop string."""
    end = len(text.rstrip(REPLACEMENT))
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text.endswith(string[:length], 0, end):
                end -= length
                break
    return end
