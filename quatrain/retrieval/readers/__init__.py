"""Readers of file formats, found by their place: a module with `SUFFIXES` and a `read` function is one.

`read(path, columns)` yields the documents of a file. A file that cannot be read raises InputError with the reason.
`MODALITY` says what a file holds if it is not text: such files are read where an encoder of the index reads them.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from quatrain.core.errors import InputError
from quatrain.data.decoding import is_packed, suffix_of
from quatrain.retrieval.documents import IndexDocument

Columns = Mapping[str, str]
"""Roles of a table's columns: "text" and "title" -> the name of a column."""
LARGEST = 512 * 1024 * 1024
"""The most bytes of a file that is read at once."""
AT_ONCE = (".html", ".htm", ".xhtml", ".pdf", ".docx")
TEXT = "text"
"""The modality of files that hold text."""
MARKER = "index.json"
"""The file that tells the folder of an index; such folders are never read."""
CONTENT = re.compile(r"content-(\d{1,9})")
"""The name of a folder in an index that holds what is read."""


class Reader(Protocol):
    """The `read` function of a module."""

    def __call__(self, path: Path, columns: Columns) -> Iterator[IndexDocument]:
        """The documents of a file. Raises InputError."""


@cache
def _modules() -> list[Any]:
    """The modules of the readers."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return [module for module in modules if hasattr(module, "SUFFIXES")]


@cache
def readers() -> dict[str, Reader]:
    """The reader of each suffix."""
    return {suffix: module.read for module in _modules() for suffix in module.SUFFIXES}


@cache
def _modalities() -> dict[str, str]:
    return {suffix: getattr(module, "MODALITY", TEXT) for module in _modules() for suffix in module.SUFFIXES}


def modality_of(name: str | Path) -> str:
    """What a file of this name holds: "text", or what its reader says."""
    return _modalities().get(suffix_of(Path(name)), TEXT)


def read_documents(path: Path, columns: Columns | None = None) -> Iterator[IndexDocument]:
    """The documents of a file that hold text, by the reader of its suffix; a file of an unknown one is read as text."""
    read = readers().get(suffix_of(path), readers()[".txt"])
    for document in read(path, columns or {}):
        if document.text.strip():
            yield document


def files_of(folder: Path, modalities: Collection[str] = (TEXT,)) -> Iterator[tuple[Path, str | None]]:
    """The files below a folder in sorted order, each with the reason why it cannot be read, or None.

    Hidden files and folders are left out silently, links to folders and indexes too: neither loops nor leaves the
    folder. A link to a file outside of the folder is not read. `modalities` are what the encoders read.
    """

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        problems.append((Path(error.filename), f"a folder that cannot be read: {error.strerror}"))

    problems: list[tuple[Path, str]] = []
    root = folder.resolve()
    for place, folders, names in os.walk(folder, onerror=unreadable):
        yield from problems
        problems.clear()
        if any(CONTENT.fullmatch(name) and _is_content(Path(place, name)) for name in folders):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(place, name)
                yield path, _unusable(path, root, modalities)
    yield from problems


def _is_content(folder: Path) -> bool:
    """Whether a folder is the content of an index, or of one that is being built beside it."""
    return (folder / "documents.sqlite").exists() or (folder.parent / MARKER).is_file()


def unread(path: Path, modalities: Collection[str]) -> str | None:
    """Why no encoder reads what a file holds; None for text, and for what one reads."""
    modality = modality_of(path)
    if modality in modalities:
        return None
    return f"it holds {modality}; --dense MODEL with a model of {modality} and texts (CLIP) makes them searchable"


def _unusable(path: Path, root: Path, modalities: Collection[str]) -> str | None:
    """Why a file of a folder is not read; None if it is."""
    suffix = suffix_of(path)
    if suffix not in readers():
        return f"its ending {path.suffix or '(none)'} is no known format"
    if reason := unread(path, modalities):
        return reason
    packed = (*AT_ONCE, ".sqlite", ".sqlite3", ".db", ".parquet")
    if is_packed(path) and (suffix in packed or modality_of(path) != TEXT):
        return "a compressed file of this format; unpack it"
    try:
        about = path.stat()
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return "a link to a file outside of the folder"
    except (OSError, RuntimeError) as error:
        return "a broken link" if path.is_symlink() else f"it cannot be read: {getattr(error, 'strerror', error)}"
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    if about.st_size == 0:
        return "it is empty"
    return f"more than {LARGEST:,} bytes" if about.st_size > LARGEST and suffix in AT_ONCE else None
