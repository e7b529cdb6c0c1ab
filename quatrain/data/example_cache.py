"""A disk cache of prepared training examples, memory-mapped and read on demand.

An entry is a folder named by the hash of everything that determines its examples. Examples are JSON lines with an
index, so that one is read without the others; nothing is pickled. The folder `prepared` of the cache may be deleted at
any time. When it outgrows MAX_BYTES, the least recently used entries are deleted.
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
from quatrain.core.reading import sha256_of
from quatrain.data.catalog import cache_folder

VERSION = 2
"""Incremented when the format of an entry changes."""

MAX_BYTES = 10 << 30
"""Limit on the bytes of all entries together."""

STALE_SECONDS = 24 * 3600
"""Age after which a partly written entry counts as abandoned by its writer."""

ABOUT, LINES, INDEX = "about.json", "examples.jsonl", "index.bin"


class CachedExamples(Sequence[Any]):
    """The examples of a cache entry and their notes; each example is read from disk when indexed."""

    def __init__(self, folder: Path, kinds: Mapping[str, type]):
        self.about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.notes: list[str] = self.about["notes"]
        self.kind = kinds[self.about["kind"]]
        self._offsets = np.memmap(folder / INDEX, dtype="<i8", mode="r")
        with open(folder / LINES, "rb") as file:
            self.lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        index = int(number) % len(self)
        text = self.lines[int(self._offsets[index]) : int(self._offsets[index + 1])]
        return dataclass_from_json(self.kind, json.loads(text))


def cached_examples(
    key: Mapping[str, Any],
    make: Callable[[], tuple[Sequence[Any], list[str]]],
    kinds: Iterable[type],
    *,
    folder: Path | None = None,
) -> tuple[Sequence[Any], list[str], bool]:
    """The examples and notes of `make()`, read from the cache if it has `key`; the third value tells if it did.

    `key` holds everything that determines the examples, as JSON: the fingerprints of data and tokenizer, the chat
    template, the settings. `kinds` are the dataclasses that examples may be; one entry has one kind. A damaged entry is
    rebuilt.
    """
    text = json.dumps({"version": VERSION, **key}, sort_keys=True)
    entry = (folder or cache_folder() / "prepared") / hashlib.sha256(text.encode()).hexdigest()[:32]
    known = {kind.__name__: kind for kind in kinds}
    if _is_whole(entry, text):
        with contextlib.suppress(OSError):
            os.utime(entry / ABOUT)  # marks the entry as recently used
        cached = CachedExamples(entry, known)
        return cached, cached.notes, True
    examples, notes = make()
    if len(examples) and type(examples[0]).__name__ in known:
        with contextlib.suppress(QuatrainError):  # no disk space for the cache: the examples are in memory anyway
            _write(entry, text, examples, notes)
            _tidy(entry)
    return examples, notes, False


def _is_whole(entry: Path, key: str) -> bool:
    try:
        about = json.loads((entry / ABOUT).read_text(encoding="utf-8"))
        return about["key"] == key and all(sha256_of(entry / name) == about["sha256"][name] for name in (LINES, INDEX))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _write(entry: Path, key: str, examples: Sequence[Any], notes: list[str]) -> None:
    """Write an entry to a temporary folder and rename it once it is complete."""
    temporary = entry.with_name(f".{entry.name}.{os.getpid()}.partial")
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
            shutil.rmtree(entry, ignore_errors=True)
            os.replace(temporary, entry)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _tidy(newest: Path) -> None:
    """Delete the least recently used entries beyond MAX_BYTES, and abandoned partial ones; `newest` always stays.

    Another process may do the same at the same time.
    """
    entries = []
    for entry in newest.parent.iterdir():
        with contextlib.suppress(OSError):
            about = entry / ABOUT
            used = (about if about.exists() else entry).stat().st_mtime
            if entry.name.endswith(".partial"):
                if time.time() - used > STALE_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
                continue
            size = sum(file.stat().st_size for file in entry.iterdir())
            entries.append((entry == newest, used, size, entry))
    room = MAX_BYTES
    for is_newest, _, size, entry in sorted(entries, reverse=True):
        room -= size
        if room < 0 and not is_newest:
            shutil.rmtree(entry, ignore_errors=True)


def dataclass_from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `asdict` followed by JSON: an instance of the dataclass `kind`."""
    hints = typing.get_type_hints(kind)
    return kind(**{item.name: _as(hints[item.name], values[item.name]) for item in fields(kind)})


def _as(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _as(next(part for part in parts if part is not type(None)), value)
    if isinstance(hint, type) and is_dataclass(hint):
        return dataclass_from_json(hint, value)
    if isinstance(value, list) and parts:
        if origin is tuple:
            inner = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
            return tuple(_as(part, each) for part, each in zip(inner, value, strict=True))
        return [_as(parts[0], each) for each in value] if _nested(parts[0]) else value
    return value


def _nested(hint: Any) -> bool:
    """Whether the elements of a list need conversion from JSON's types."""
    plain = (int, float, str, bool, Any)
    return hint not in plain
