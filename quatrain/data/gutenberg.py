"""Project Gutenberg's header and footer, removed from a stream of text.

New files have "*** START OF THE PROJECT GUTENBERG EBOOK … ***", older ones "THIS" for "THE", those of before about
2003 only the end of "the small print". A text without such a mark is passed on untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: A mark later than this is not at the beginning of a file.
_HEAD = 40_000
#: What must be seen after the mark to find the credits that follow it.
_CREDITS = 3_000

_START = re.compile(
    r"^[ \t]*\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG (?:EBOOK|ETEXT)[^*]{0,400}\*\*\*[^\n]*\n?",
    re.IGNORECASE | re.MULTILINE,
)
_SMALL_PRINT = re.compile(r"^[ \t]*\*END\*? ?THE SMALL PRINT!?[^\n]*\n?", re.IGNORECASE | re.MULTILINE)
_END = re.compile(
    r"^[ \t]*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG (?:EBOOK|ETEXT)"
    r"|\*{3,} ?START: FULL LICENSE"
    r"|End of (?:the |this )?Project Gutenberg(?:['’]s)? )",
    re.IGNORECASE | re.MULTILINE,
)
_CREDIT = re.compile(
    r"\s*(?:(?:Produced|Transcribed|Prepared|Scanned) (?:by|from) |E-?text prepared by |Credits: "
    r"|This (?:etext|e-text|eBook) was (?:prepared|produced) (?:by|from) )[^\n]*(?:\n[^\n]+)*",
    re.IGNORECASE,
)


def strip_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """Yields a book, whose text comes in pieces, without header, credits, footer and licence; other texts unchanged.

    Holds back little more than one piece.
    """
    stream = iter(pieces)
    head, found = "", None
    for piece in stream:
        head += piece
        found = _mark(head)
        if (found is not None and len(head) > found.end() + _CREDITS) or len(head) > _HEAD + _CREDITS:
            break
    if found is None:
        if head:
            yield head
        yield from stream
        return
    body = head[found.end() :]
    if credit := _CREDIT.match(body):
        body = body[credit.end() :]
    yield from _until_end(body.lstrip(), stream)


def _mark(head: str) -> re.Match[str] | None:
    """The end of the header: a mark that stands within the beginning of the text."""
    for mark in (_START, _SMALL_PRINT):
        found = mark.search(head)
        if found is not None and found.start() < _HEAD:
            return found
    return None


def _until_end(held: str, stream: Iterator[str]) -> Iterator[str]:
    """Pass text on up to the footer. What may be the beginning of its line, and white space before it, is held."""
    while True:
        if found := _END.search(held):
            yield held[: found.start()].rstrip() + "\n"
            return
        piece = next(stream, None)
        if piece is None:
            if held:
                yield held
            return
        line = held.rfind("\n")
        # No line of a footer is this long: a text without line ends still flows.
        cut = line if len(held) - line < 10_000 else len(held)
        ready = held[:cut].rstrip()
        if ready:
            yield ready
        held = held[len(ready) :] + piece
