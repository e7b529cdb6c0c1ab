"""PDF: the text of its pages (pypdf); each page is a section, so that a citation names it.

A page that holds only pictures of text has no text to read. An encrypted file is read if its password is empty.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import open_regular
from quatrain.retrieval.documents import Heading, IndexDocument, cleaned
from quatrain.retrieval.readers import Columns

SUFFIXES = (".pdf",)


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The one document of a PDF file. Raises InputError for a damaged or encrypted one, and without pypdf."""
    with require(f"{path}: PDF", "pypdf", "rag"):
        import pypdf
        from pypdf.errors import PyPdfError
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    pages: list[str] = []
    title = ""
    with open_regular(path) as file:
        try:
            reader = pypdf.PdfReader(file)
            title = str((reader.metadata.title if reader.metadata else None) or "")
            pages = [page.extract_text() for page in reader.pages]
        except (PyPdfError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{path} cannot be read as PDF: {reason}") from error
    headings, text = [], ""
    for number, page in enumerate(pages, 1):
        if page.strip():
            headings.append(Heading(len(text), 1, f"page {number}"))
            text += page.rstrip() + "\n\n"
    if not text:
        raise InputError(f"{path} holds no text, only pictures; recognize its text first (OCR)")
    yield IndexDocument(cleaned(text.rstrip()), cleaned(title).strip(), headings=tuple(headings))
