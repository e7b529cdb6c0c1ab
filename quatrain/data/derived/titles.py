"""Titles or questions with the texts they stand over: pairs for sentence embeddings, from collections of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quatrain.data.rows import read_records

FIELDS = (("title", "text"), ("question", "answer"))
WORDS = 90
"""Words of a text that are kept."""


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"source": title or question, "target": the beginning of its text}; a title that the text repeats is cut off."""
    for path in paths:
        for record in read_records(path):
            names = next((names for names in FIELDS if all(record.value.get(name) for name in names)), None)
            if names is None:
                continue
            title, text = (" ".join(str(record.value[name]).split()) for name in names)
            text = text[len(title) :].lstrip(" .") if text.lower().startswith(title.lower()) else text
            if title and text:
                yield {"source": title, "target": " ".join(text.split()[:WORDS])}
