"""Whisper's timestamp tokens: the rules by which they are generated, and the segments that they mark.

Radford et al. 2022 (arXiv 2212.04356), section 2.3. A token stands for a time of the window in steps of 20 ms. Text is
enclosed in two of them, and they never fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

OUT = float("-inf")


@dataclass(frozen=True)
class TimestampRules:
    """A logits processor that keeps timestamps in pairs and in order; equal to transformers' for the same numbers.

    `first` is the token of 0.00 s; the token before it forbids timestamps and is never generated. `prompt` tokens stand
    before the first new one. If all timestamps together are likelier than the likeliest word, a timestamp is taken.
    """

    first: int
    end: int
    """The end token; tokens below it are text."""
    prompt: int
    max_initial: int | None = None
    """The largest number of steps of the first timestamp."""

    def __call__(self, ids: list[int], logits: Tensor) -> Tensor:
        """`ids` so far, the prompt included, and the logits (V) of the next token, which are changed in place."""
        new = ids[self.prompt :]
        logits[self.first - 1] = OUT
        last = bool(new) and new[-1] >= self.first
        pair = len(new) < 2 or new[-2] >= self.first
        if last and pair:
            logits[self.first :] = OUT
        elif last:
            logits[: self.end] = OUT
        times = [token for token in new if token >= self.first]
        if times:
            logits[self.first : times[-1] + (0 if last and not pair else 1)] = OUT
        if not new:
            logits[: self.first] = OUT
            if self.max_initial is not None:
                logits[self.first + self.max_initial + 1 :] = OUT
        scores = logits.float().log_softmax(-1)
        if scores[self.first :].logsumexp(-1) > scores[: self.first].max():
            logits[: self.first] = OUT
        return logits


@dataclass(frozen=True)
class TokenSegment:
    """Tokens of a window, with times in steps from its beginning."""

    start: int
    end: int
    tokens: tuple[int, ...]
    """With the timestamps around them."""


def split_segments(ids: Sequence[int], first: int, steps: int) -> tuple[list[TokenSegment], int]:
    """The segments of a window of `steps` steps, and the step at which the next window starts.

    Two timestamps side by side end a segment and begin the next one. An unfinished segment at the end is dropped, and
    the next window starts where it does; a single timestamp at the end says that nothing follows.
    """
    tokens, stamped = list(ids), [token >= first for token in ids]
    cuts = [place for place in range(1, len(tokens)) if stamped[place - 1] and stamped[place]]
    closed = stamped[-2:] == [False, True]
    if not cuts:
        times = [token - first for token in tokens if token >= first]
        end = min(times[-1], steps) if times and times[-1] > 0 else steps
        text = [token for token in tokens if token < first]
        return ([TokenSegment(min(times[0], end) if times else 0, end, tuple(tokens))] if text else []), steps
    segments, begin = [], 0
    for cut in [*cuts, len(tokens)] if closed else cuts:
        part = tokens[begin:cut]
        if any(token < first for token in part):
            end = part[-1] - first if part[-1] >= first else steps
            start = part[0] - first if part[0] >= first else 0
            segments.append(TokenSegment(start, max(start, end), tuple(part)))
        begin = cut
    return segments, steps if closed else tokens[cuts[-1] - 1] - first
