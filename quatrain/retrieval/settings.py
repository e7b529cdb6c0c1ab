"""The settings of an index, and its folder: `index.json`, and the content that it names.

A content is a folder with the store's files, `bm25/`, and the encoders that were fitted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json, user_path
from quatrain.core.settings import Listing, Problem, Settings, did_you_mean, parse
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.retrieval.readers import CONTENT, MARKER
from quatrain.retrieval.stores import stores
from quatrain.retrieval.words import LANGUAGES

VERSION = 2
INDEXES = "indexes"
"""Where an index is made and looked for by its name alone."""


class IndexSettings(Settings):
    """How an index is built."""

    chunks: ChunkSettings = ChunkSettings()
    language: str = "english"
    """The language of stems and stop words, or "none"."""
    dense: Listing[str] = ()
    """Encoders: "lsa", files of word vectors, models of sentence embeddings; none: BM25 alone."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The columns of tables with the `text` and the `title` of a document."""
    store: str = "sqlite"
    location: str | None = None
    """The address of the store's server, such as http://localhost:6333#notes."""

    def conflicts(self) -> Iterator[Problem]:
        known = [*LANGUAGES, "none"]
        if self.language not in known:
            near = did_you_mean(self.language, known)
            yield Problem(("language",), f"{self.language!r}; must be one of {', '.join(known)}{near}")
        if self.store not in stores():
            yield Problem(("store",), f"{self.store!r}; must be one of {', '.join(stores())}")
        for role in self.columns:
            if role not in ("text", "title"):
                yield Problem(("columns", role), "must be text or title")

    def reading_digest(self) -> str:
        """What the chunks of a file depend on beside its content."""
        value = {"version": VERSION, "chunks": self.chunks.model_dump(), "columns": self.columns}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_settings(folder: Path, settings: IndexSettings, source: str, content: str) -> None:
    """Write `index.json`. `content` is the name of the content that is read from now on."""
    value = {"version": VERSION, "source": source, "content": content, "settings": settings.model_dump(mode="json")}
    write_json(folder / MARKER, value)


def read_settings(folder: Path) -> tuple[IndexSettings, str]:
    """The settings of an index and what it was made of. Raises InputError for a folder that is no index."""
    value = _marker(folder)
    settings = parse(IndexSettings, value.get("settings") or {}, what=str(folder / MARKER))
    return settings, str(value.get("source", ""))


def content_folder(folder: Path) -> Path:
    """The content of an index that is read. Raises InputError for a folder that is no index."""
    name = _marker(folder).get("content")
    if not isinstance(name, str) or not CONTENT.fullmatch(name):
        raise InputError(
            f"{folder / MARKER}: content {name!r}; must be content-N. Delete the folder and build it again"
        )
    return folder / name


def _marker(folder: Path) -> dict[str, Any]:
    """What `index.json` says. Raises InputError."""
    if not (folder / MARKER).is_file():
        raise InputError(f"{folder} is no index: it has no {MARKER}. Make one with: quatrain index FOLDER")
    value: dict[str, Any] = read_json(folder / MARKER)
    if value.get("version") != VERSION:
        raise InputError(
            f"{folder / MARKER}: version {value.get('version')!r}; must be {VERSION}. Delete the folder and build the "
            "index again"
        )
    return value


def index_folder(name: str | Path) -> Path:
    """The folder of an index that a user names: a path, or a name in `indexes/`."""
    path = user_path(name, "the index")
    named = Path(INDEXES) / path
    is_name = len(path.parts) == 1 and not (path / MARKER).is_file() and (named / MARKER).is_file()
    return named if is_name else path
