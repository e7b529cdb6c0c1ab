"""From what a user names to the files that are read: a catalog name, a file, a folder, or files that go line by line.

`train.{en,de}` names two files whose lines belong together: the shell's way to write `train.en` and `train.de`.
`mine.jsonl + spider-train` names several sources that are read one after the other.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from quatrain.errors import InputError
from quatrain.text import catalog
from quatrain.text.decoding import check_head, suffix_of
from quatrain.text.download import Progress
from quatrain.text.rows import RECORD_SUFFIXES

#: Endings that are read as plain text. A file named by itself is, whatever its ending.
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")

JOINED = " + "
"""Between the names of several sources."""

_BRACES = re.compile(r"\{([^{},]*),([^{},]*)\}")

#: Told what of a folder is left out, and why.
Skipped = Callable[[Path, str], None]


def find_files(source: str | Path, *, skipped: Skipped | None = None, progress: Progress | None = None) -> list[Path]:
    """The files of `source`, each one checked at its beginning: a catalog name (fetched where needed), a file, or a
    folder, whose files come sorted, subfolders too; hidden files are left out, and `skipped` hears of every other one.
    Of several sources joined by " + ", those of all.

    Raises InputError with every file that is absent, empty or no text.
    """
    names = parts(source)
    if len(names) > 1:
        found = (file for name in names for file in find_files(name, skipped=skipped, progress=progress))
        return list(dict.fromkeys(found))
    entry = catalog.find(str(source)) if isinstance(source, str) else None
    if entry is not None:
        return [catalog.fetch(entry, progress=progress)]
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path, skipped or (lambda path, reason: None))
    if not path.exists():
        raise _absent(source, path)
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder")
    check_head(path)
    return [path]


def parts(source: str | Path) -> tuple[str, ...]:
    """The names in `a.jsonl + b.jsonl`; the source itself where it names no several."""
    if JOINED not in str(source) or Path(source).expanduser().exists():
        return (str(source),)
    return tuple(name for each in str(source).split(JOINED) if (name := each.strip()))


def wanted_rows(source: str | Path) -> dict[Path, list[dict[str, str]]]:
    """The files of which the catalog takes some rows alone, with the values that those have in their columns."""
    found: dict[Path, list[dict[str, str]]] = {}
    for name in parts(source):
        entry = catalog.find(name)
        if entry is not None and entry.where:
            found.setdefault(catalog.fetch(entry), []).append(dict(entry.where))
    return found


def parallel(source: str | Path) -> tuple[str, str] | None:
    """The two names in `train.{en,de}.gz`, whose lines belong together; None where a source names no two."""
    found = _BRACES.search(str(source))
    if found is None or Path(source).exists():
        return None
    before, after = str(source)[: found.start()], str(source)[found.end() :]
    return f"{before}{found[1]}{after}", f"{before}{found[2]}{after}"


def is_record_file(path: Path) -> bool:
    """Whether a file's ending says that it holds records (JSON, CSV, TSV, Parquet) and not plain text."""
    return suffix_of(path) in RECORD_SUFFIXES


def _of_folder(folder: Path, skipped: Skipped) -> list[Path]:
    known, problems = [], []
    for path in _walk(folder):
        if suffix_of(path) not in (*TEXT_SUFFIXES, *RECORD_SUFFIXES):
            skipped(path, f"its ending {path.suffix or '(none)'} is not one of text")
            continue
        try:
            if path.stat().st_size == 0:
                skipped(path, "it is empty")
                continue
            check_head(path)
        except InputError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"cannot read {path}: {error.strerror or error}")
        else:
            known.append(path)
    if problems:
        count = f"{len(problems)} file{'s' if len(problems) > 1 else ''}"
        raise InputError(f"{count} of {folder} cannot be read; mend or remove them", problems)
    if not known:
        endings = " ".join((*TEXT_SUFFIXES, *RECORD_SUFFIXES))
        raise InputError(f"{folder} holds no text: files with the endings {endings} (or those and .gz) are read")
    return known


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _absent(source: str | Path, path: Path) -> InputError:
    """What is said of something that is neither there nor in the catalog."""
    hints = []
    if path.parent.is_dir():
        names = [each.name for each in path.parent.iterdir() if not each.name.startswith(".")]
        near = difflib.get_close_matches(path.name, names, 2, 0.6)
        hints += [str(path.parent / name) for name in near]
    elif str(path.parent) != ".":
        return InputError(f"{path} does not exist: there is no folder {path.parent}")
    if isinstance(source, str) and len(path.parts) == 1:
        hints += difflib.get_close_matches(source.lower(), catalog.CATALOG, 2, 0.5)
    hint = f". Did you mean {' or '.join(hints)}?" if hints else ""
    known = ", ".join(catalog.CATALOG)
    return InputError(
        f"{str(source)!r} is neither a file, a folder, nor a name of the catalog{hint}"
        + ("" if hints else f". The catalog knows {known}, and gutenberg:N for any book of Project Gutenberg")
    )
