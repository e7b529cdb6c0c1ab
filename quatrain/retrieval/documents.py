"""Documents of an index and their chunks. A chunk is a span: `document.text[chunk.start:chunk.end]` is its text.

Offsets count Unicode code points, as Python's strings do. The text of a document is what its reader gives: the decoded
file with "\\n" line ends for a text file, the extracted text for HTML, PDF and DOCX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


def cleaned(text: str) -> str:
    """A text that any store takes: NUL characters and halves of surrogate pairs become U+FFFD, one for one."""
    return _NO_TEXT.sub("\ufffd", text)


@dataclass(frozen=True)
class Heading:
    """A heading, or a page of a PDF: what follows `start` belongs to it, up to the next one of its level or above."""

    start: int
    level: int
    title: str


@dataclass(frozen=True)
class IndexDocument:
    """One document: a file, a row of a table, or a page of results.

    `part` tells the documents of one file apart, such as "row 7"; it is empty where the file is one document.
    """

    text: str
    title: str = ""
    part: str = ""
    headings: tuple[Heading, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def heading_path(self, start: int) -> tuple[str, ...]:
        """The titles of the headings that hold a place, the outermost first."""
        path: list[Heading] = []
        for heading in self.headings:
            if heading.start > start:
                break
            while path and path[-1].level >= heading.level:
                path.pop()
            path.append(heading)
        return tuple(heading.title for heading in path)


@dataclass(frozen=True)
class Chunk:
    """A span [start, end) of a document's text; `path` are the titles of the headings that hold it."""

    start: int
    end: int
    path: tuple[str, ...] = ()


def pathed(document: IndexDocument, spans: Sequence[tuple[int, int]]) -> list[Chunk]:
    """Chunks of spans, with the headings that hold them; empty spans are left out."""
    return [Chunk(start, end, document.heading_path(start)) for start, end in spans if start < end]
