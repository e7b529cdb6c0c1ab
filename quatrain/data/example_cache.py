"""Examples that were prepared once and are found again: a cache on the disk, read as it is needed.

An entry is a folder named by the hash of all that its examples follow from. Examples are JSON lines with an index, so
that one is read without the others; nothing is pickled. The folder `prepared` of the cache may be deleted at any time;
where it outgrows MOST, the entries go that were not read for longest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.atomic import disk_errors, write_json
from quatrain.core.errors import QuatrainError
from quatrain.data.catalog import cache_folder
from quatrain.data.download import sha256_of

VERSION = 2
"""Counted up when what is prepared changes though its key would not say so."""

MOST = 10 << 30
"""Bytes that all entries may take together."""

ABANDONED = 24 * 3600
"""Seconds after which an entry that is half written has nobody who writes it."""

ABOUT, LINES, INDEX = "about.json", "examples.jsonl", "index.bin"


class Prepared(Sequence[Any]):
    """The examples of an entry, and the notes that came with them; each is read from the disk when it is asked for."""

    def __init__(self, folder: Path, kinds: Mapping[str, type]):
        self.about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.notes: list[str] = self.about["notes"]
        self.kind = kinds[self.about["kind"]]
        self._places = np.memmap(folder / INDEX, dtype="<i8", mode="r")
        with open(folder / LINES, "rb") as file:
            self.lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        place = int(number) % len(self)
        text = self.lines[int(self._places[place]) : int(self._places[place + 1])]
        return revived(self.kind, json.loads(text))


def prepared(
    key: Mapping[str, Any],
    make: Callable[[], tuple[Sequence[Any], list[str]]],
    kinds: Iterable[type],
    *,
    folder: Path | None = None,
) -> tuple[Sequence[Any], list[str], bool]:
    """The examples and notes that `make` gives, from the cache where the key is known; whether they came from there.

    `key` is all that they follow from, as JSON: the data's mark, the tokenizer's fingerprint, template and settings.
    Examples are dataclasses of `kinds`, of one kind each time. A damaged entry is made anew.
    """
    text = json.dumps({"version": VERSION, **key}, sort_keys=True)
    place = (folder or cache_folder() / "prepared") / hashlib.sha256(text.encode()).hexdigest()[:32]
    known = {kind.__name__: kind for kind in kinds}
    if _is_whole(place, text):
        with contextlib.suppress(OSError):
            os.utime(place / ABOUT)  # when it was last read
        found = Prepared(place, known)
        return found, found.notes, True
    examples, notes = make()
    if len(examples) and type(examples[0]).__name__ in known:
        with contextlib.suppress(QuatrainError):  # no room for the cache: the examples are here all the same
            _write(place, text, examples, notes)
            _tidy(place)
    return examples, notes, False


def _is_whole(place: Path, key: str) -> bool:
    try:
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        return about["key"] == key and all(sha256_of(place / name) == about["sha256"][name] for name in (LINES, INDEX))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _write(place: Path, key: str, examples: Sequence[Any], notes: list[str]) -> None:
    """Writes an entry beside its place, and puts it there when it is whole."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    with disk_errors(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            index = [0]
            with open(temporary / LINES, "wb") as file:
                for example in examples:
                    index.append(index[-1] + file.write(json.dumps(asdict(example)).encode() + b"\n"))
                file.flush()
                os.fsync(file.fileno())
            (temporary / INDEX).write_bytes(np.array(index, dtype="<i8").tobytes())
            sums = {name: sha256_of(temporary / name) for name in (LINES, INDEX)}
            kind = type(examples[0]).__name__
            write_json(temporary / ABOUT, {"key": key, "kind": kind, "notes": notes, "sha256": sums})
            shutil.rmtree(place, ignore_errors=True)
            os.replace(temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _tidy(newest: Path) -> None:
    """Deletes the entries that were not read for longest where all take more than MOST, and what was left half written.

    The newest stays. Another process may do the same meanwhile.
    """
    entries = []
    for place in newest.parent.iterdir():
        with contextlib.suppress(OSError):
            about = place / ABOUT
            used = (about if about.exists() else place).stat().st_mtime
            if place.name.endswith(".partial"):
                if time.time() - used > ABANDONED:
                    shutil.rmtree(place, ignore_errors=True)
                continue
            size = sum(file.stat().st_size for file in place.iterdir())
            entries.append((place == newest, used, size, place))
    room = MOST
    for is_newest, _, size, place in sorted(entries, reverse=True):
        room -= size
        if room < 0 and not is_newest:
            shutil.rmtree(place, ignore_errors=True)


def revived(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass out of what `asdict` and JSON have made of it."""
    hints = typing.get_type_hints(kind)
    return kind(**{item.name: _as(hints[item.name], values[item.name]) for item in fields(kind)})


def _as(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _as(next(part for part in parts if part is not type(None)), value)
    if isinstance(hint, type) and is_dataclass(hint):
        return revived(hint, value)
    if isinstance(value, list) and parts:
        if origin is tuple:
            inner = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
            return tuple(_as(part, each) for part, each in zip(inner, value, strict=True))
        return [_as(parts[0], each) for each in value] if _nested(parts[0]) else value
    return value


def _nested(hint: Any) -> bool:
    """Whether values of a list have to be made from what JSON knows."""
    plain = (int, float, str, bool, Any)
    return hint not in plain
