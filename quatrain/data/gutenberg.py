"""Removes Project Gutenberg's header, credits and footer from a stream of text.

The header of recent files ends with "*** START OF THE PROJECT GUTENBERG EBOOK … ***" (older ones have "THIS" for
"THE"), that of files before about 2003 with "*END* THE SMALL PRINT". A text without either is unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_HEADER_LENGTH = 40_000
"""Limit on the characters of a header."""

_CREDITS_LENGTH = 3_000
"""Characters to read after the header to find the credits that may follow it."""

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
    """Yield the text of a book without header, credits, footer and licence; other texts are unchanged.

    Buffers the header and then little more than one piece.
    """
    stream = iter(pieces)
    head, header = "", None
    for piece in stream:
        head += piece
        header = _header_end(head)
        if len(head) > (_HEADER_LENGTH if header is None else header.end()) + _CREDITS_LENGTH:
            break
    if header is None:
        if head:
            yield head
        yield from stream
        return
    body = head[header.end() :]
    if credit := _CREDIT.match(body):
        body = body[credit.end() :]
    yield from _until_end(body.lstrip(), stream)


def _header_end(head: str) -> re.Match[str] | None:
    """The line that ends the header; None if the text does not begin with one."""
    for pattern in (_START, _SMALL_PRINT):
        match = pattern.search(head)
        if match is not None and match.start() < _HEADER_LENGTH:
            return match
    return None


def _until_end(buffer: str, stream: Iterator[str]) -> Iterator[str]:
    """Yield the text up to the footer. The last line, which may begin the footer, and the space before it wait."""
    while True:
        if footer := _END.search(buffer):
            yield buffer[: footer.start()].rstrip() + "\n"
            return
        piece = next(stream, None)
        if piece is None:
            if buffer:
                yield buffer
            return
        last_line = buffer.rfind("\n")
        # No line of a footer is this long, so a text without line breaks need not wait.
        end = last_line if len(buffer) - last_line < 10_000 else len(buffer)
        ready = buffer[:end].rstrip()
        if ready:
            yield ready
        buffer = buffer[len(ready) :] + piece
