"""Plain text: the decoded file, as one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quatrain.data.decoding import read_text
from quatrain.retrieval.documents import IndexDocument, cleaned
from quatrain.retrieval.readers import Columns

SUFFIXES = (".txt", ".text", ".rst", ".log")


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The one document of a text file. Raises InputError for a file that is not text."""
    yield IndexDocument(cleaned("".join(read_text(path))))
