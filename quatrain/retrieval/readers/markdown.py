"""Markdown: the source itself, with its headings; a title in front matter or the first heading names the document.

Headings as CommonMark 0.31 has them: `#` to `######`, and lines underlined with `=` or `-`; none inside code fences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quatrain.data.decoding import read_text
from quatrain.retrieval.documents import Heading, IndexDocument, cleaned
from quatrain.retrieval.readers import Columns

SUFFIXES = (".md", ".markdown")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FRONT = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The one document of a Markdown file. Raises InputError for a file that is not text."""
    text = cleaned("".join(read_text(path)))
    front = _FRONT.match(text)
    named = _TITLE.search(front[1]) if front else None
    headings = headings_of(text, front.end() if front else 0)
    title = named[1].strip("\"'") if named else headings[0].title if headings else ""
    yield IndexDocument(text, title, headings=headings)


def headings_of(text: str, start: int = 0) -> tuple[Heading, ...]:
    """The headings of a Markdown text after a place, in their order."""
    found: list[Heading] = []
    fence, place, paragraph = "", start, None  # paragraph: the start of the lines that an underline makes a heading
    for line in text[start:].split("\n"):
        mark = _FENCE.match(line)
        heading, under = _ATX.match(line), _UNDERLINE.match(line)
        if fence:
            if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence, paragraph = mark[1], None
        elif heading:
            found.append(Heading(place, len(heading[1]), (heading[2] or "").strip()))
            paragraph = None
        elif under and paragraph is not None:
            title = " ".join(text[paragraph:place].split())
            found.append(Heading(paragraph, 1 if under[1][0] == "=" else 2, title))
            paragraph = None
        elif not line.strip():
            paragraph = None
        elif paragraph is None and not line.startswith(("    ", "\t", ">", "- ", "* ", "+ ", "|")):
            paragraph = place
        place += len(line) + 1
    return tuple(found)
