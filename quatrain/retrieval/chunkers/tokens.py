"""Windows of `size` tokens that share `overlap` tokens."""

from __future__ import annotations

from quatrain.retrieval.chunkers import ChunkSettings, MeasureTokens, windows
from quatrain.retrieval.documents import Chunk, IndexDocument, pathed
from quatrain.retrieval.words import trimmed_span


def chunk(document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens) -> list[Chunk]:
    """The windows of a document; a chunk begins and ends with a token, less the white space that it holds."""
    text = document.text
    spans = windows(measure(text), settings.size, settings.overlap)
    return pathed(document, [trimmed_span(text, *span) for span in spans])
