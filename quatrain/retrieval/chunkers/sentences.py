"""Whole sentences, as many as fit into `size` tokens; the last ones are repeated within `overlap` tokens.

A sentence of more than `size` tokens becomes windows of tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from quatrain.retrieval.chunkers import ChunkSettings, MeasureTokens, Span, windows
from quatrain.retrieval.documents import Chunk, IndexDocument, pathed
from quatrain.retrieval.words import sentence_spans


def chunk(document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens) -> list[Chunk]:
    """The chunks of a document; each begins and ends with a sentence, long sentences aside."""
    tokens = measure(document.text)
    return pathed(document, list(packed(sentence_spans(document.text), tokens, settings.size, settings.overlap)))


def packed(sentences: Sequence[Span], tokens: list[Span], size: int, overlap: int) -> Iterator[Span]:
    """Spans of as many sentences as have at most `size` tokens together.

    A span begins with the last sentences of the one before it that have at most `overlap` tokens and leave room.
    """
    starts = [start for start, _ in tokens]
    places = [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in sentences]
    pending: list[int] = []  # numbers of the sentences of the next span
    fresh = False  # whether it has more than what it repeats
    for number, (first, last) in enumerate(places):
        if last - first > size:
            if fresh:
                yield sentences[pending[0]][0], sentences[pending[-1]][1]
            yield from windows(tokens[first:last], size, overlap)
            pending, fresh = [], False
            continue
        if pending and last - places[pending[0]][0] > size:
            if fresh:
                yield sentences[pending[0]][0], sentences[pending[-1]][1]
            end = places[pending[-1]][1]
            while pending and (end - places[pending[0]][0] > overlap or last - places[pending[0]][0] > size):
                del pending[0]
        pending.append(number)
        fresh = True
    if fresh:
        yield sentences[pending[0]][0], sentences[pending[-1]][1]
