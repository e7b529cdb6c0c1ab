"""From generated ids to text: stop strings that cross token borders, and streaming that never takes text back."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not a complete UTF-8 character (yet)."""

WINDOW = 64
"""Tokens that are decoded again as context of the next ones while a completion is streamed."""
UNSETTLED = 8
"""Characters at the start of a window that may differ from the whole text: a stripped space, half a character."""


class TokenizerLike(Protocol):
    """The part of a tokenizer that the engine uses."""

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token."""

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a completion."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Text to ids."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Ids to text."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its written form."""


def token_ids_of(prompt: object) -> list[int]:
    """A prompt of token ids as a list. Raises InputError for anything but text or whole numbers."""
    try:
        return [operator.index(token) for token in prompt]  # type: ignore[attr-defined]
    except TypeError as error:
        raise InputError(f"prompt: {format_value(prompt)}; must be a text or a list of token ids") from error


def special_token_id(tokenizer: TokenizerLike, text: str) -> int | None:
    """The id of a text that is one of the tokenizer's special tokens, else None."""
    token = tokenizer.token_to_id(text)
    return token if token in tokenizer.special_ids else None


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string starts in a text; None without one."""
    places = [place for place in (text.find(string) for string in stop) if place >= 0]
    return min(places) if places else None


def may_end_with_stop(tokenizer: TokenizerLike, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the newest token may have completed a stop string, judged by a window of the last tokens.

    The window makes the cost of a token independent of the length of the completion. It holds a few tokens before the
    stop string, because some decoders treat the first token differently; it grows over tokens that have no text of
    their own, and never starts at a token that is one byte of a character.
    """
    width = max(len(string.encode()) for string in stop) + 8
    byte_ids: frozenset[int] = getattr(tokenizer, "byte_ids", frozenset())
    start = max(len(ids) - width, 0)
    while True:
        while start and (ids[start] in byte_ids or ids[start] in tokenizer.special_ids):
            start -= 1
        text = tokenizer.decode(ids[start:])
        if not start or len(text.encode("utf-8", "replace")) >= width - 4:
            return find_stop(text, stop) is not None
        start = max(start - width, 0)


def stopped(tokenizer: TokenizerLike, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the text of `ids` contains a stop string, given that it did not without the newest id."""
    return may_end_with_stop(tokenizer, ids, stop) and find_stop(tokenizer.decode(ids), stop) is not None


class TextStreamer:
    """Turns a growing list of ids into text that can be shown at once and never has to be taken back.

    Each call decodes a window of the last tokens, so that a completion costs time linear in its length.
    """

    def __init__(self, tokenizer: TokenizerLike | None, stop: Sequence[str]):
        """`stop` are strings that end the text and are not part of it."""
        self.tokenizer, self.stop = tokenizer, stop
        self.shown = 0
        """Characters of the completion's text that were returned so far."""
        self._start, self._origin = 0, 0
        """The window's first token, and the place of its text in the whole text."""
        self._move_at = 2 * WINDOW
        """Number of ids at which the window moves."""

    def more(self, ids: Sequence[int]) -> str:
        """The text that can be shown beyond what was returned before. `ids` are all ids so far, without an end token.

        Half a character and a possible beginning of a stop string are held back.
        """
        if self.tokenizer is None:
            return ""
        text = self._settled(ids[self._start :])
        safe = self._origin + safe_length(text, self.stop)
        before, self.shown = self.shown, max(safe, self.shown)
        piece = text[before - self._origin : self.shown - self._origin]
        if len(ids) >= self._move_at:
            self._move(ids, text)
        return piece

    def _settled(self, ids: Sequence[int]) -> str:
        text: str = getattr(self.tokenizer, "settled", self.tokenizer.decode)(ids)  # type: ignore[union-attr]
        return text

    def _move(self, ids: Sequence[int], text: str) -> None:
        """Starts the window at a later token, if the text from there on is the end of the present window's `text`."""
        byte_ids: frozenset[int] = getattr(self.tokenizer, "byte_ids", frozenset())
        start = max(len(ids) - WINDOW, self._start)
        while start > self._start and ids[start - 1] in byte_ids:
            start -= 1
        window = self._settled(ids[start:])
        origin = self._origin + len(text) - len(window)
        needed = UNSETTLED + max((len(string) for string in self.stop), default=0)
        if text.endswith(window[UNSETTLED:]) and origin + needed <= self.shown:
            self._start, self._origin = start, origin
        self._move_at = len(ids) + max(WINDOW, len(ids) - self._start)


def safe_length(text: str, stop: Sequence[str]) -> int:
    """How much of a growing text may be shown: up to an unfinished character or the beginning of a stop string."""
    end = len(text.rstrip(REPLACEMENT))
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text.endswith(string[:length], 0, end):
                end -= length
                break
    return end
