"""Pictures: a document each. Its text is what its file says of it: its name, and a description saved inside.

Pixels are read when the picture gets its vector; this reads the head of the file alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quatrain.data.images import SUFFIXES as PICTURES
from quatrain.data.images import picture_facts
from quatrain.retrieval.documents import IndexDocument, cleaned
from quatrain.retrieval.readers import Columns

SUFFIXES = PICTURES
MODALITY = "pictures"
_SEPARATORS = re.compile(r"[\W_]+")


def read(path: Path, columns: Columns) -> Iterator[IndexDocument]:
    """The one document of a picture. Raises InputError for what is no picture, or too large."""
    facts = picture_facts(path)
    name = _SEPARATORS.sub(" ", path.stem).strip() or path.name
    metadata = {"media": MODALITY, "width": facts.width, "height": facts.height, "format": facts.format}
    if facts.frames > 1:
        metadata["frames"] = facts.frames
    yield IndexDocument(cleaned("\n\n".join(filter(None, (name, facts.description)))), metadata=metadata)
