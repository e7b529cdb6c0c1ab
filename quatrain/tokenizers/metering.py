"""What one rendering of a chat template may spend: steps, characters, size of numbers, depth and processor time.

`quatrain.tokenizers.sandbox` makes templates pay. A meter belongs to one rendering, and to the thread that renders.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.runtime import Undefined
from jinja2.utils import Namespace

from quatrain.core.errors import InputError

MAX_STEPS = 1_000_000
"""Turns of loops, calls, and elements that are looked at. A chat of 1,000 turns needs some 50,000."""

MORE_STEPS = 3_000
"""Further ones for each message, for templates that look at all messages in each turn."""

MAX_CHARACTERS = 200_000_000
"""Characters that all operations together may make or copy."""

MAX_TEXT = 8_000_000
"""Characters of one text within a template. Longer conversations may have as much again as they bring."""

MAX_BITS = 16_000
"""Bits of a whole number."""

MAX_NESTED_CALLS = 100
"""Macros, blocks and recursive loops within each other."""

MAX_SECONDS = 5.0
"""Processor time of the rendering thread."""


class TemplateLimitError(InputError):
    """A chat template was stopped. The message says at which limit."""


class Meter:
    """What one rendering may still spend. Once a limit is hit, every further payment fails too."""

    def __init__(self, given: int = 0, messages: int = 0):
        """`given`: characters of the conversation, which a template may copy as a matter of course."""
        self.most = self.steps = MAX_STEPS + MORE_STEPS * messages
        self.characters = MAX_CHARACTERS + 20 * given
        self.longest = MAX_TEXT + 6 * given
        self.depth = 0
        self.ends = time.thread_time() + MAX_SECONDS
        self.failed: TemplateLimitError | None = None

    def fail(self, limit: str) -> TemplateLimitError:
        """The error of a limit; the same one ever after."""
        self.failed = self.failed or TemplateLimitError(
            f"the chat template was stopped: {limit}. It takes too much time or memory; take another template"
        )
        return self.failed

    def step(self, count: int = 1) -> None:
        """Pay for `count` elementary operations."""
        before = self.steps
        self.steps = before - count
        if self.steps < 0:
            raise self.fail(f"more than {self.most:,} steps (loops, calls, elements)")
        if (before ^ self.steps) >> 10 and time.thread_time() > self.ends:
            raise self.fail(f"more than {MAX_SECONDS:g} seconds")
        if self.failed is not None:
            raise self.failed

    def text(self, length: int) -> None:
        """Pay for a text that is about to be made, or was."""
        if length > self.longest:
            raise self.fail(f"a text of {length:,} characters; at most {self.longest:,} are allowed")
        self.characters -= length
        if self.characters < 0:
            raise self.fail(f"more than {MAX_CHARACTERS:,} characters of text made in all")
        self.step(1 + (length >> 12))

    def number(self, bits: float) -> None:
        """Refuse a whole number of more than `MAX_BITS` bits."""
        if bits > MAX_BITS:
            raise self.fail(f"a whole number of more than {MAX_BITS:,} bits")

    def value(self, value: Any) -> int:
        """Pay for an operation that looks at the whole of a value, such as printing or comparing it.

        An element that is there twice is paid twice, as it is looked at twice. Gives the characters of its texts.
        """
        if isinstance(value, str | bytes):
            self.text(len(value))
            return len(value)
        if value is None or isinstance(value, bool | int | float | Undefined):
            self.step()
            return 24
        total = 0
        waiting = [value]
        while waiting:
            each = waiting.pop()
            self.step()
            if isinstance(each, str | bytes):
                self.text(len(each))
                total += len(each) + 4
                if total > self.longest:
                    raise self.fail(f"a value of {total:,} characters; at most {self.longest:,} are allowed")
            elif isinstance(each, Mapping):
                waiting += each.keys()
                waiting += each.values()
            elif isinstance(each, list | tuple | KeysView | ValuesView | ItemsView):
                self.step(len(each) >> 3)
                waiting += each
            elif isinstance(each, range):
                self.step(len(each) >> 3)
            elif isinstance(each, Namespace):
                waiting.append(object.__getattribute__(each, "_Namespace__attrs"))
            else:
                total += 24
        return total

    def shallow(self, value: Any) -> None:
        """Pay for an operation that goes over the elements of a value without looking into them."""
        if isinstance(value, str | bytes):
            self.text(len(value))
        elif isinstance(value, list | tuple | Mapping | range):
            self.step(1 + len(value))
        else:
            self.step()

    def made(self, value: Any) -> Any:
        """Pay for what an operation gave."""
        if isinstance(value, str | bytes):
            self.text(len(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            self.number(value.bit_length())
        elif isinstance(value, list | tuple):
            self.step(1 + len(value))
        elif isinstance(value, Iterator):
            return self.metered(value)
        return value

    def metered(self, items: Iterator[Any]) -> Iterator[Any]:
        """Items, each paid for when it is asked for."""
        for item in items:
            self.value(item)
            yield item


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def meter() -> Meter:
    """The meter of the rendering that this thread is in; a new one while none is."""
    return _METER.get() or Meter()


@contextmanager
def metered(given: int = 0, messages: int = 0) -> Iterator[Meter]:
    """A meter for all that a block of code renders."""
    own = Meter(given, messages)
    token = _METER.set(own)
    try:
        yield own
    finally:
        _METER.reset(token)
