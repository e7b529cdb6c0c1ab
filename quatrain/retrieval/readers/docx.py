"""DOCX: paragraphs and tables in their order (python-docx), with the headings that their styles name."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import open_regular
from quatrain.retrieval.documents import Heading, IndexDocument, cleaned
from quatrain.retrieval.readers import LARGEST, Columns

SUFFIXES = (".docx",)


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The one document of a Word file. Raises InputError for a damaged one, and without python-docx."""
    with require(f"{path}: DOCX", "python-docx", "rag"):
        import docx
        from docx.opc.exceptions import OpcError
    with open_regular(path) as file:
        try:
            size = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            if size > LARGEST:
                raise InputError(f"{path} unpacks to {size:,} bytes; at most {LARGEST:,} are read")
            file.seek(0)
            yield _document(docx.Document(file))
        except (OpcError, zipfile.BadZipFile, KeyError, ValueError, SyntaxError) as error:
            raise InputError(f"{path} cannot be read as DOCX: {' '.join(str(error).split())}") from error


def _document(source: Any) -> IndexDocument:
    text, headings = "", []
    for block in source.iter_inner_content():
        if hasattr(block, "rows"):
            part = "\n".join("\t".join(cell.text.strip() for cell in row.cells) for row in block.rows)
        else:
            part = block.text.strip()
            level = re.fullmatch(r"(?:Heading (\d)|Title)", (block.style.name or "") if block.style else "")
            if part and level:
                headings.append(Heading(len(text), int(level[1] or 0), " ".join(cleaned(part).split())))
        if part:
            text += cleaned(part) + "\n\n"
    title = source.core_properties.title or (headings[0].title if headings else "")
    return IndexDocument(text.rstrip(), cleaned(title), headings=tuple(headings))
