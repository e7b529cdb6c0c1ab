"""Each document as one chunk, for collections of short texts; `size` and `overlap` do not count."""

from __future__ import annotations

from quatrain.retrieval.chunkers import ChunkSettings, MeasureTokens
from quatrain.retrieval.documents import Chunk, IndexDocument, pathed
from quatrain.retrieval.words import trimmed_span


def chunk(document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens) -> list[Chunk]:
    """The one chunk of a document, without white space at its ends."""
    return pathed(document, [trimmed_span(document.text, 0, len(document.text))])
