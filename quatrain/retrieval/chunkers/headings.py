"""Sections by their headings, or pages of a PDF; a section of more than `size` tokens is packed by sentences.

A heading without text of its own belongs to the section below it. A document without headings is one section.
"""

from __future__ import annotations

from bisect import bisect_left

from quatrain.retrieval.chunkers import ChunkSettings, MeasureTokens, Span
from quatrain.retrieval.chunkers.sentences import packed
from quatrain.retrieval.documents import Chunk, IndexDocument, pathed
from quatrain.retrieval.words import sentence_spans, trimmed_span


def chunk(document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens) -> list[Chunk]:
    """The chunks of a document; no chunk holds text of two sections."""
    text, tokens = document.text, measure(document.text)
    starts = [start for start, _ in tokens]
    spans: list[Span] = []
    for start, end in sections(document):
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        if last - first <= settings.size:
            spans.append(trimmed_span(text, start, end))
        else:
            part = tokens[first:last]
            spans += packed(sentence_spans(text, start, end), part, settings.size, settings.overlap)
    return pathed(document, spans)


def sections(document: IndexDocument) -> list[Span]:
    """The spans of the sections of a document, each with its heading; what is before the first one is one too."""
    text, headings = document.text, document.headings
    borders = [0]
    for heading, before in zip(headings, [None, *headings], strict=False):
        # Only the line of the first lies between two headings: both head the same section. A page has no such line.
        line = "" if before is None else text[before.start : heading.start].strip()
        alone = before is not None and "\n" not in line and before.title in line
        if not alone and heading.start > borders[-1]:
            borders.append(heading.start)
    return list(zip(borders, [*borders[1:], len(text)], strict=True))
