"""Recordings of speech with what is said in them: a ZIP file or a folder of sound files.

The texts are in a file `metadata.csv` with the columns `file_name` and `text`, as in Hugging Face's folders of sounds;
without it the names tell, as in the Free Spoken Digit Dataset: `7_jackson_3.wav` is the digit 7 by Jackson, take 3.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.data import catalog
from quatrain.data.sounds import SUFFIXES, read_sound

METADATA = "metadata.csv"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMED = re.compile(r"(\d)_([^_]+)_(\d+)\.\w+$")
MOST_BYTES = 1 << 30
"""Bytes of one recording in a ZIP file, unpacked."""


@dataclass(frozen=True)
class Recording:
    """Samples in float32 at the rate that was asked for, and what is said."""

    name: str
    samples: np.ndarray
    text: str
    speaker: str = ""
    take: int | None = None
    """Which of several recordings of the same text by the same speaker."""


def read_recordings(source: str | Path, rate: int) -> list[Recording]:
    """The recordings of a catalog name, a ZIP file or a folder, sorted by name.

    Raises InputError, all problems at once, for files that cannot be read and recordings without a text.
    """
    entry = catalog.find(str(source))
    path = catalog.fetch(entry) if entry is not None else user_path(source, "data.source")
    contents = _contents(path)
    texts = _metadata(contents.get(METADATA), path)
    found, problems = [], []
    for name in sorted(contents):
        if not name.lower().endswith(SUFFIXES):
            continue
        named = NAMED.search(name)
        text = texts.get(name) if texts else DIGITS[int(named[1])] if named else None
        if text is None:
            where = METADATA if texts else "its name (such as 7_jackson_3.wav); write a metadata.csv"
            problems.append(f"{name}: what is said is not in {where}")
            continue
        try:
            samples = read_sound(contents[name].read_bytes(), rate)
        except InputError as error:
            problems.append(f"{name}: {error.message}")
            continue
        speaker, take = (named[2], int(named[3])) if named else ("", None)
        found.append(Recording(name, samples, text, speaker, take))
    if problems:
        raise InputError(f"{path}: {len(problems)} recordings cannot be used:", problems[:20])
    if not found:
        raise InputError(f"{path}: has no sound files ({', '.join(SUFFIXES[:6])}, …).")
    return found


def _contents(path: Path) -> Mapping[str, zipfile.Path | Path]:
    """The files of a folder or a ZIP file by their names, without hidden ones."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return {file.relative_to(path).as_posix(): file for file in files}
    if not path.is_file():
        raise InputError(f"data.source: {path} does not exist; name a folder or a ZIP file of sounds.")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: neither a folder nor a ZIP file of sounds ({error}).") from error
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if large := [info.filename for info in infos if info.file_size > MOST_BYTES]:
        raise InputError(f"{path}: {large[0]} unpacks to more than {MOST_BYTES:,} bytes.")
    names = [info.filename for info in infos if not Path(info.filename).name.startswith((".", "__"))]
    # A folder that holds everything is left out of the names.
    top = {name.split("/")[0] for name in names}
    prefix = f"{top.pop()}/" if len(top) == 1 and all("/" in name for name in names) else ""
    return {name.removeprefix(prefix): zipfile.Path(archive, name) for name in names}


def _metadata(file: zipfile.Path | Path | None, path: Path) -> dict[str, str]:
    """The texts by file name; {} without the file."""
    if file is None:
        return {}
    try:
        rows: Iterator[dict[str, str]] = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig")))
        listed = list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {METADATA} cannot be read as CSV in UTF-8 ({error}).") from error
    if not listed or not {"file_name", "text"} <= set(listed[0]):
        raise InputError(f"{path}: {METADATA} needs the columns file_name and text, and at least one row.")
    return {str(row["file_name"]): str(row["text"]).strip() for row in listed if row["text"]}
