"""What the name of a source stands for: a catalog name, a file, a folder, parallel files, or a Hugging Face data set.

`train.{en,de}` names two parallel files, whose lines correspond: shell syntax for `train.en` and `train.de`.
`mine.jsonl + spider-train` names several sources, which are read one after the other.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.core.reading import exists, user_path
from quatrain.data import catalog
from quatrain.data.decoding import PACKED, check_head, suffix_of
from quatrain.data.download import DownloadProgress
from quatrain.data.rows import RECORD_SUFFIXES

#: Suffixes read as plain text in folders. A file that the user names is read whatever its suffix.
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")

PREFIX = "hf:"
"""The beginning of the name of a data set on the Hugging Face hub."""

JOINED = " + "
"""The separator of several source names."""

UNPACKED = {".gz": 2.6, ".bz2": 3.5, ".zst": 3.0, ".xz": 3.5, ".zip": 3.0, ".parquet": 2.0}
"""How many bytes of text a byte of a compressed file holds, about."""

_BRACES = re.compile(r"\{([^{},]*),([^{},]*)\}")

#: Called with each path of a folder that is not read, and the reason.
OnSkipped = Callable[[Path, str], None]


def find_files(
    source: str | Path, *, skipped: OnSkipped | None = None, progress: DownloadProgress | None = None
) -> list[Path]:
    """The files of `source`: a catalog name (downloaded if needed), a file, a folder, or several joined by " + ".

    The files of a folder and its subfolders are sorted, without hidden ones; `skipped` is called for each other file
    that is not read. The beginning of each file is checked. Raises InputError with all files that are missing, empty
    or not text.
    """
    names = source_names(source)
    if len(names) > 1:
        files = (file for name in names for file in find_files(name, skipped=skipped, progress=progress))
        return list(dict.fromkeys(files))
    entry = catalog.find(str(source)) if isinstance(source, str) else None
    if entry is not None:
        return [catalog.fetch(entry, progress=progress)]
    path = user_path(source, "the source")
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if is_folder:
        return _of_folder(path, skipped or (lambda path, reason: None))
    if not is_there:
        raise _absent(source, path)
    check_head(path)
    return [path]


def is_dataset(source: str | Path) -> bool:
    """Whether a source is a data set on the hub, or a folder written by `save_to_disk`."""
    if isinstance(source, str) and source.startswith(PREFIX):
        return True
    if not exists(source):
        return False
    path = user_path(source)
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def source_names(source: str | Path) -> tuple[str, ...]:
    """The names in `a.jsonl + b.jsonl`; a single name is returned as it is."""
    if JOINED not in str(source) or exists(source):
        return (str(source),)
    return tuple(name for part in str(source).split(JOINED) if (name := part.strip()))


def text_bytes(source: str | Path) -> int | None:
    """About how many bytes of text a source has, by the sizes of its files, none of which is read or downloaded.

    Compressed files count as much as such text usually unpacks to. None for a source whose size is not known, such as
    one on a hub.
    """
    total = 0.0
    for name in source_names(source):
        entry = catalog.find(name)
        if entry is not None:
            sizes = [(Path(copy.path), copy.size) for copy in entry.copies if copy.size is not None][:1]
        elif exists(name):
            path = user_path(name)
            files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
            sizes = [(each, each.stat().st_size) for each in files]
        else:
            sizes = []
        if not sizes:
            return None
        total += sum(size * UNPACKED.get(path.suffix.lower(), 1.0) for path, size in sizes)
    return round(total)


def selected_rows(source: str | Path) -> dict[Path, list[dict[str, str]]]:
    """The files whose rows the catalog selects -> the column values to select."""
    selections: dict[Path, list[dict[str, str]]] = {}
    for name in source_names(source):
        entry = catalog.find(name)
        if entry is not None and entry.where:
            selections.setdefault(catalog.fetch(entry), []).append(dict(entry.where))
    return selections


def parallel_names(source: str | Path) -> tuple[str, str] | None:
    """The two names in `train.{en,de}.gz`; None if the source is not a pair of parallel files."""
    braces = _BRACES.search(str(source))
    if braces is None or exists(source):
        return None
    before, after = str(source)[: braces.start()], str(source)[braces.end() :]
    return f"{before}{braces[1]}{after}", f"{before}{braces[2]}{after}"


def is_record_file(path: Path) -> bool:
    """Whether the suffix of a file is that of a record format (JSON, CSV, TSV, Parquet, CoNLL), not plain text."""
    return suffix_of(path) in RECORD_SUFFIXES


def _of_folder(folder: Path, skipped: OnSkipped) -> list[Path]:
    known, problems = [], []
    left = SkippedFiles()

    def leave(path: Path, reason: str) -> None:
        left.add(path, reason)
        skipped(path, reason)

    for path in _walk(folder, leave):
        reason = _unusable(path)
        if reason is not None:
            leave(path, reason)
            continue
        try:
            check_head(path)
        except InputError as error:
            problems.append(str(error))
        else:
            known.append(path)
    if problems:
        count = f"{len(problems)} file{'s' if len(problems) > 1 else ''}"
        raise InputError(f"{count} of {folder} cannot be read; correct or remove them", problems)
    if not known:
        endings = " ".join((*TEXT_SUFFIXES, *RECORD_SUFFIXES))
        raise InputError(
            f"{folder} has no text: files with the endings {endings} (or these and {' '.join(PACKED)}) are read",
            left.lines(folder),
        )
    return known


def _unusable(path: Path) -> str | None:
    """Why a file of a folder is not read; None if it is."""
    if suffix_of(path) not in (*TEXT_SUFFIXES, *RECORD_SUFFIXES):
        return f"its ending {path.suffix or '(none)'} is not a text format"
    try:
        about = path.stat()
    except OSError as error:
        return "a broken link" if path.is_symlink() else f"it cannot be read: {error.strerror}"
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    return "it is empty" if about.st_size == 0 else None


def _walk(folder: Path, skipped: OnSkipped) -> Iterator[Path]:
    """The files below a folder. Symbolic links to folders and unreadable folders are skipped, hidden ones silently."""

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        skipped(Path(error.filename), f"a folder that cannot be read: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(place, name).is_symlink():
                skipped(Path(place, name), "a link to a folder")
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


class SkippedFiles:
    """The files of folders that are not read, by reason: count and first names; `read` counts the other files."""

    FIRST = 3

    def __init__(self) -> None:
        self.read = 0
        self.kinds: dict[str, tuple[int, list[Path]]] = {}

    def add(self, path: Path, reason: str) -> None:
        """Add one file or folder; has the signature of `OnSkipped`."""
        count, names = self.kinds.get(reason, (0, []))
        self.kinds[reason] = count + 1, [*names, path][: self.FIRST]

    @property
    def count(self) -> int:
        """The number of skipped files."""
        return sum(count for count, _ in self.kinds.values())

    def lines(self, folder: str | Path = "") -> list[str]:
        """One line per reason, most frequent first: "left out (it is empty): 12: a.txt, b.txt, c.txt, …"."""
        result = []
        for reason, (count, names) in sorted(self.kinds.items(), key=lambda kind: -kind[1][0]):
            examples = ", ".join(_short_name(path, folder) for path in names) + (", …" if count > len(names) else "")
            result.append(f"left out ({reason}): {count:,}: {examples}")
        return result


def skipped_files(source: str | Path) -> SkippedFiles:
    """The files in a source's folders that are not read, judged by names and sizes without opening them."""
    skipped = SkippedFiles()
    for name in (name for each in source_names(source) for name in parallel_names(each) or (each,)):
        if is_dataset(name) or (catalog.find(name) is not None and not exists(name)):
            continue
        folder = user_path(name, "the source")
        if folder.is_dir():
            for path in _walk(folder, skipped.add):
                reason = _unusable(path)
                if reason is not None:
                    skipped.add(path, reason)
                else:
                    skipped.read += 1
    return skipped


def _short_name(path: Path, folder: str | Path) -> str:
    try:
        return str(path.relative_to(folder))
    except ValueError:
        return str(path)


def _absent(source: str | Path, path: Path) -> InputError:
    """The error for a source that is neither a path nor a catalog name."""
    if path.is_symlink():
        return InputError(f"{path} is a broken link: {os.readlink(path)} does not exist")
    hints = []
    if path.parent.is_dir() and os.access(path.parent, os.R_OK):
        names = [file.name for file in path.parent.iterdir() if not file.name.startswith(".")]
        near = difflib.get_close_matches(path.name, names, 2, 0.6)
        hints += [str(path.parent / name) for name in near]
    elif str(path.parent) != ".":
        return InputError(f"{path} does not exist: there is no folder {path.parent}")
    if isinstance(source, str) and len(path.parts) == 1:
        hints += difflib.get_close_matches(source.lower(), catalog.CATALOG, 2, 0.5)
    hint = f". Did you mean {' or '.join(hints)}?" if hints else ""
    known = ", ".join(catalog.CATALOG)
    return InputError(
        f"{str(source)!r} is not a file, a folder or a name of the catalog{hint}"
        + ("" if hints else f". The catalog has {known}, and gutenberg:N for any book of Project Gutenberg")
    )
