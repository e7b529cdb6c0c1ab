"""HTML: the text that a page shows, with its headings and title; scripts, styles and navigation are left out.

Where the page has a `main` or an `article`, only that is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from quatrain.data.decoding import read_text
from quatrain.retrieval.documents import Heading, IndexDocument, cleaned
from quatrain.retrieval.readers import Columns

SUFFIXES = (".html", ".htm", ".xhtml")
_SILENT = {"script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "select", "textarea", "button"}
_BLOCKS = set(
    "address article aside blockquote dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li main "
    "ol p pre section table tr ul br body".split()
)
_SPACED = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "pre", "blockquote", "section", "article"}
_EMPTY = {"br", "hr", "img", "input", "meta", "link", "source", "wbr", "area", "base", "col", "embed", "track"}
_MAIN = ("main", "article")


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The one document of a page. Raises InputError for a file that is not text."""
    source = "".join(read_text(path))
    page = _Page(next((tag for tag in _MAIN if re.search(rf"<{tag}\b", source, re.IGNORECASE)), None))
    page.feed(source)
    page.close()
    yield page.document()


class _Page(HTMLParser):
    """Collects the text of a page. `only`: the element whose text is read, or None for all."""

    def __init__(self, only: str | None):
        super().__init__(convert_charrefs=True)
        self.only, self.inside = only, 0
        self.silent: list[str] = []
        self.pre = 0
        self.parts: list[str] = []
        self.size = 0
        self.heading: tuple[int, int, int] | None = None  # its start, its level, the number of parts before it
        self.headings: list[Heading] = []
        self.title: list[str] = []
        self.in_title = False

    @property
    def reads(self) -> bool:
        return not self.silent and not self.in_title and (self.only is None or self.inside > 0)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self.title:
            self.in_title = True
        if tag == self.only:
            self.inside += 1
        is_hidden = tag not in _EMPTY and ("hidden" in dict(attrs) or ("aria-hidden", "true") in attrs)
        if tag in _SILENT or is_hidden or (self.silent and tag == self.silent[-1]):
            self.silent.append(tag)
        if not self.reads:
            return
        self._border(tag)
        if tag == "li":
            self._add("- ")
        if tag == "pre":
            self.pre += 1
        if re.fullmatch("h[1-6]", tag):
            self.heading = self.size, int(tag[1]), len(self.parts)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False
        if self.silent:
            if tag in self.silent:
                del self.silent[len(self.silent) - 1 - self.silent[::-1].index(tag) :]
            return
        if self.reads:
            if self.heading is not None and re.fullmatch("h[1-6]", tag):
                start, level, before = self.heading
                title = " ".join("".join(self.parts[before:]).split())
                if title:
                    self.headings.append(Heading(start, level, title))
                self.heading = None
            if tag in ("td", "th"):
                self._add("\t")
            self._border(tag)
        if tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag == self.only:
            self.inside = max(0, self.inside - 1)

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)
        elif self.reads:
            if not self.pre:
                data = re.sub(r"\s+", " ", data)
                if not self.parts or self.parts[-1][-1:] in ("\n", " ", "\t"):
                    data = data.lstrip(" ")
            self._add(data)

    def _border(self, tag: str) -> None:
        """Ends the line at the border of a block; an empty line where paragraphs meet."""
        if tag not in _BLOCKS or not self.parts:
            return
        while self.parts and not self.parts[-1].strip(" \t"):
            self.size -= len(self.parts.pop())
        tail = "".join(self.parts[-3:])
        wanted = 2 if tag in _SPACED else 1
        have = len(tail) - len(tail.rstrip("\n"))
        if self.parts and have < wanted:
            self._add("\n" * (wanted - have))

    def _add(self, text: str) -> None:
        if text:
            self.parts.append(text)
            self.size += len(text)

    def document(self) -> IndexDocument:
        """The text, with the headings where they stand in it."""
        text = cleaned("".join(self.parts)).rstrip()
        title = " ".join("".join(self.title).split())
        headings = tuple(each for each in self.headings if each.start < len(text))
        return IndexDocument(text, title or (headings[0].title if headings else ""), headings=headings)
