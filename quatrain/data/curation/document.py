"""The unit of curation: one document with its place, its source and its other fields, and why a step removes one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class SourceDocument:
    """A document on its way through the steps, which may change `text` and `fields`.

    `place` is "file:line". `fields` are the other columns of its row, such as `url`. `split` is the output it goes to,
    and `copies` how often it is written there.
    """

    place: str
    text: str
    source: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    split: str = "train"
    copies: int = 1

    @property
    def url(self) -> str:
        """The address of the page; empty if the row has no field `url`."""
        value = self.fields.get("url")
        return value if isinstance(value, str) else ""

    def to_row(self) -> dict[str, Any]:
        """The row that is written: text, source, place and the other fields."""
        return {"text": self.text, "source": self.source, "place": self.place, **self.fields}


@dataclass(frozen=True, slots=True)
class Removal:
    """Why a step removes a document. `detail` names what was found, such as the evaluation item."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """A part of a file that is no document: its place and what is wrong."""

    place: str
    reason: str


def content_key(text: str) -> int:
    """A 64-bit key of a text, equal in every process and on every machine; orders and samples follow from it."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
