"""The catalog of named data sets, with their addresses, checksums and licences.

They are listed in `catalog.toml`. A file is looked up in the folder QUATRAIN_DATA, then in the cache, and downloaded if
it is in neither. `gutenberg:N` names any book of Project Gutenberg.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from quatrain.core.atomic import atomic_write, disk_errors
from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.core.offline import offline
from quatrain.core.reading import sha256_of, user_path
from quatrain.core.wording import format_value
from quatrain.data.derived import derived_rows
from quatrain.data.download import DownloadProgress, download

_GUTENBERG = re.compile(r"gutenberg:0*([1-9]\d{0,6})$", re.IGNORECASE)


@dataclass(frozen=True)
class Copy:
    """One copy of a source: its path below QUATRAIN_DATA or the cache, SHA-256, size in bytes, and download address.

    A copy without address is only looked up on disk."""

    path: str
    sha256: str | None = None
    size: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A named data set. `format` is text, jsonl, alpaca, a format of `quatrain.data.formats`, sqlite or audio.

    All copies have the same content. `where` selects the rows with these values (column, value); `databases` names the
    source with the databases of its questions. A set with `derived` is made by that rule of `quatrain.data.derived`
    from the sources `origins`, and kept in the cache.
    """

    name: str
    description: str
    licence: str
    format: str
    copies: tuple[Copy, ...]
    where: tuple[tuple[str, str], ...] = ()
    databases: str | None = None
    derived: str | None = None
    origins: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path of the first copy below QUATRAIN_DATA."""
        return self.copies[0].path

    @property
    def size(self) -> int | None:
        """The size of the first copy in bytes, None if unknown."""
        return self.copies[0].size

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the first copy, None if unknown."""
        return self.copies[0].sha256

    @property
    def urls(self) -> tuple[str, ...]:
        """The download addresses."""
        return tuple(copy.url for copy in self.copies if copy.url is not None)


def _read_catalog() -> dict[str, Source]:
    with Path(__file__).with_name("catalog.toml").open("rb") as file:
        tables = tomllib.load(file)
    return {
        name: Source(
            name,
            **table
            | {
                "copies": tuple(Copy(**copy) for copy in table["copies"]),
                "where": tuple(table.get("where", {}).items()),
                "origins": tuple(table.get("origins", ())),
            },
        )
        for name, table in tables.items()
    }


CATALOG: dict[str, Source] = _read_catalog()


def find(name: str) -> Source | None:
    """The source of that name, `gutenberg:N` included; None if there is none."""
    if name in CATALOG:
        return CATALOG[name]
    if match := _GUTENBERG.match(name):
        number = match[1]
        known = f"gutenberg:{number}"
        if known in CATALOG:
            return CATALOG[known]
        url = f"https://www.gutenberg.org/cache/epub/{number}/pg{number}.txt"
        return Source(
            known,
            f"Project Gutenberg's book {number}",
            "as the book's Project Gutenberg licence says; most are public domain in the USA",
            "text",
            (Copy(f"text/gutenberg/pg{number}.txt", url=url),),
        )
    return None


def get(name: str) -> Source:
    """The source of that name. Raises InputError, with similar names, if there is none."""
    source = find(name)
    if source is None:
        near = difflib.get_close_matches(name.lower(), CATALOG, 3, 0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"{name!r} is not a name of the catalog. {hint}It has {', '.join(CATALOG)}, and gutenberg:N for any book "
            "of Project Gutenberg"
        )
    return source


def cache_folder() -> Path:
    """The folder of downloads: QUATRAIN_CACHE, or the system's folder for caches.

    Raises InputError if QUATRAIN_CACHE is not a folder, or no home folder is known.
    """
    if chosen := os.environ.get("QUATRAIN_CACHE"):
        folder = user_path(chosen, "QUATRAIN_CACHE")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"QUATRAIN_CACHE={format_value(chosen)}: must be a folder; a missing one is created")
        return folder
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "quatrain" / "Cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "quatrain"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quatrain"
    except RuntimeError as error:
        raise InputError("the home folder is not known; set HOME, or QUATRAIN_CACHE for the downloads") from error


def data_folder() -> Path | None:
    """The folder that QUATRAIN_DATA names; None if it is not set. Raises InputError if it is not a folder."""
    chosen = os.environ.get("QUATRAIN_DATA")
    if not chosen:
        return None
    folder = user_path(chosen, "QUATRAIN_DATA")
    if not folder.is_dir():
        raise InputError(f"QUATRAIN_DATA={format_value(chosen)}: must be an existing folder; or unset it")
    return folder


def _folders() -> list[Path]:
    data = data_folder()
    return [*([data] if data is not None else []), cache_folder() / "data"]


def locate(source: Source | str) -> Path | None:
    """The file of a source if it is on this machine, with its checksum verified; else None.

    Raises QuatrainError for a file with a wrong checksum.
    """
    source = get(source) if isinstance(source, str) else source
    for folder in _folders():
        for copy in source.copies:
            path = folder / copy.path
            if path.is_file():
                _verify(path, copy, source)
                return path
    return None


def fetch(source: Source | str, *, progress: DownloadProgress | None = None, tries: int = 4) -> Path:
    """The verified file of a source: from QUATRAIN_DATA, from the cache, or downloaded into the cache.

    Raises InputError for an unknown name, OfflineError if the network is needed but forbidden or unreachable (the
    message says where to put the file), QuatrainError for a file with a wrong checksum.
    """
    source = get(source) if isinstance(source, str) else source
    path = locate(source)
    if path is not None:
        return path
    if source.derived is not None:
        return _derive(source, progress=progress, tries=tries)
    remedy = _remedy(source)
    for copy in source.copies:
        if copy.url is not None:
            target = cache_folder() / "data" / copy.path
            return download(
                copy.url, target, sha256=copy.sha256, size=copy.size, progress=progress, tries=tries, remedy=remedy
            )
    forbidden = " (and QUATRAIN_OFFLINE forbids the network)" if offline() else ""
    raise OfflineError(
        f"{source.name} is not on this machine and has no address to download it from{forbidden}. {remedy}."
    )


def _derive(source: Source, *, progress: DownloadProgress | None, tries: int) -> Path:
    """Makes a derived set from its origins and keeps it in the cache."""
    origins = [fetch(name, progress=progress, tries=tries) for name in source.origins]
    target = cache_folder() / "data" / source.path
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            for row in derived_rows(str(source.derived), origins):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return target


def _remedy(source: Source) -> str:
    """How to provide the file without a download."""
    data, copy = data_folder(), source.copies[0]
    if data is not None:
        place = f"Put the file at {data / copy.path} (QUATRAIN_DATA)"
    else:
        place = f"Set QUATRAIN_DATA to a folder that holds it as {copy.path}"
    return f"{place}, or at {cache_folder() / 'data' / copy.path}"


def _verify(path: Path, copy: Copy, source: Source) -> None:
    if copy.size is not None and path.stat().st_size != copy.size:
        actual, expected = f"{path.stat().st_size:,} bytes", f"{copy.size:,} bytes"
    elif copy.sha256 is not None and (digest := sha256_of(path)) != copy.sha256:
        actual, expected = f"SHA-256 {digest}", f"SHA-256 {copy.sha256}"
    else:
        return
    raise QuatrainError(
        f"{path} is not {source.name} as the catalog knows it: found {actual}, expected {expected}. Replace or "
        "remove it; to use it as it is, name its path instead of the source"
    )
