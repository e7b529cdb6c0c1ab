"""Chunks of at most `size` characters: cut at empty lines, then line ends, then spaces, then anywhere.

The recursive way of LangChain's splitter, on spans: its chunks with the offsets that they really have. Of
"chunk chunk" with size and overlap 5 these are 0, 6 and 6: "chunk", "chun" and "chunk".
"""

from __future__ import annotations

from collections.abc import Iterator

from quatrain.retrieval.chunkers import ChunkSettings, MeasureTokens, Span
from quatrain.retrieval.documents import Chunk, IndexDocument, pathed
from quatrain.retrieval.words import trimmed_span

SEPARATORS = ("\n\n", "\n", " ")


def chunk(document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens) -> list[Chunk]:
    """The chunks of a document, without white space at their ends; their size counts characters."""
    text = document.text
    spans = _split(text, (0, len(text)), SEPARATORS, settings.size, settings.overlap)
    return pathed(document, [trimmed_span(text, *span) for span in spans])


def _split(text: str, span: Span, separators: tuple[str, ...], size: int, overlap: int) -> Iterator[Span]:
    """Merged pieces between the first separator that occurs; pieces that are too long are split by the next ones."""
    start, end = span
    used = next((number for number, each in enumerate(separators) if text.find(each, start, end) >= 0), None)
    if used is None:
        yield from _merged([(place, place + 1) for place in range(start, end)], size, overlap)
        return
    short: list[Span] = []
    for piece in _pieces(text, start, end, separators[used]):
        if piece[1] - piece[0] < size:
            short.append(piece)
            continue
        yield from _merged(short, size, overlap)
        short = []
        yield from _split(text, piece, separators[used + 1 :], size, overlap)
    yield from _merged(short, size, overlap)


def _pieces(text: str, start: int, end: int, separator: str) -> Iterator[Span]:
    """The parts of a span; each begins with the separator before it."""
    while start < end:
        found = text.find(separator, start + 1 if text.startswith(separator, start) else start, end)
        stop = end if found < 0 else found
        if stop > start:
            yield start, stop
        start = stop


def _merged(pieces: list[Span], size: int, overlap: int) -> Iterator[Span]:
    """Spans of neighbouring pieces of at most `size` characters that share at most `overlap`."""
    first = 0
    for number, (start, end) in enumerate(pieces):
        if first < number and end - pieces[first][0] > size:
            yield pieces[first][0], pieces[number - 1][1]
            while first < number and (start - pieces[first][0] > overlap or end - pieces[first][0] > size):
                first += 1
    if pieces:
        yield pieces[first][0], pieces[-1][1]
