"""Reads and writes the GGUF container: metadata, then aligned tensors in ggml's formats.

GGUF is the file format of llama.cpp (specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). This
module knows the container only: typed key-value pairs, and for each tensor its name, shape, format and place. The code
that encodes blocks is `quatrain.compression.ggml_blocks`; models and tokenizers interpret the metadata.

Every length in a file is checked against the size of the file before it is used, so that a damaged file raises
InputError and neither hangs nor exhausts memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from quatrain.core.errors import InputError
from quatrain.core.reading import open_regular
from quatrain.core.wording import printable

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
SUFFIX = ".gguf"
LONGEST_TEXT = 64 * 2**20
MOST_DIMENSIONS = 4
REPAIR = "Download or export the file again."


@dataclass(frozen=True)
class BlockFormat:
    """One of ggml's tensor formats: its number in files, weights per block and bytes per block."""

    number: int
    weights: int
    nbytes: int


FORMATS: dict[str, BlockFormat] = {
    "F32": BlockFormat(0, 1, 4),
    "F16": BlockFormat(1, 1, 2),
    "Q4_0": BlockFormat(2, 32, 18),
    "Q4_1": BlockFormat(3, 32, 20),
    "Q5_0": BlockFormat(6, 32, 22),
    "Q5_1": BlockFormat(7, 32, 24),
    "Q8_0": BlockFormat(8, 32, 34),
    "Q2_K": BlockFormat(10, 256, 84),
    "Q3_K": BlockFormat(11, 256, 110),
    "Q4_K": BlockFormat(12, 256, 144),
    "Q5_K": BlockFormat(13, 256, 176),
    "Q6_K": BlockFormat(14, 256, 210),
    "IQ4_NL": BlockFormat(20, 32, 18),
    "IQ4_XS": BlockFormat(23, 256, 136),
    "I8": BlockFormat(24, 1, 1),
    "I16": BlockFormat(25, 1, 2),
    "I32": BlockFormat(26, 1, 4),
    "I64": BlockFormat(27, 1, 8),
    "F64": BlockFormat(28, 1, 8),
    "BF16": BlockFormat(30, 1, 2),
    "MXFP4": BlockFormat(39, 32, 17),
}
"""The formats by name."""

_BY_NUMBER = {each.number: name for name, each in FORMATS.items()}
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_UINT8, _UINT32, _INT32, _FLOAT32, _BOOL, _TEXT, _ARRAY, _UINT64 = 0, 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: name, shape as torch has it (outer dimension first), format, and its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    format: str
    start: int
    nbytes: int


class GgufFile:
    """The metadata and the list of tensors of a GGUF file, whose bytes stay memory-mapped.

    Raises InputError for a file that is not GGUF, is incomplete, or contradicts itself.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_regular(self.path) as handle:
            try:
                # Copy-on-write because torch has no read-only tensors; nothing writes to it.
                self.mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
            except ValueError as error:
                raise InputError(f"{self.path}: is empty, so it is not a GGUF file. {REPAIR}") from error
        cursor = _Cursor(self.path, self.mapping)
        if cursor.take(4) != MAGIC:
            raise InputError(f"{self.path}: does not begin with GGUF, so it is not a GGUF file. {REPAIR}")
        version = cursor.scalar("<I")
        if version not in (2, 3):
            hint = "it is written for big-endian processors" if version > 2**16 else "convert it with a newer llama.cpp"
            raise InputError(f"{self.path}: GGUF version {version}; must be 2 or 3: {hint}.")
        tensors, pairs = cursor.count(24), cursor.count(12)
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = cursor.text()
            self.metadata[key] = cursor.value(cursor.scalar("<I"))
        self.tensors = self._entries(cursor, tensors)

    def _entries(self, cursor: _Cursor, count: int) -> dict[str, TensorEntry]:
        found = []
        for _ in range(count):
            name, dimensions = cursor.text(), cursor.scalar("<I")
            if dimensions > MOST_DIMENSIONS:
                raise InputError(f"{self.path}: {printable(name[:80])} has {dimensions} dimensions. {REPAIR}")
            shape = [cursor.scalar("<Q") for _ in range(dimensions)]
            found.append((name, shape, cursor.scalar("<I"), cursor.scalar("<Q")))
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise InputError(f"{self.path}: general.alignment is {alignment!r}; must be a multiple of 8. {REPAIR}")
        data = cursor.place + -cursor.place % alignment
        entries: dict[str, TensorEntry] = {}
        problems = []
        for name, shape, number, offset in found:
            shown = printable(name[:80])
            if number not in _BY_NUMBER:
                problems.append(f"{shown}: format {number}; known are {', '.join(FORMATS)}")
                continue
            layout = FORMATS[_BY_NUMBER[number]]
            weights = 1
            for size in shape:
                weights *= size
            row = shape[0] if shape else 1
            nbytes = weights // layout.weights * layout.nbytes
            if not weights or row % layout.weights or data + offset + nbytes > len(self.mapping):
                problems.append(f"{shown}: {shape} in {_BY_NUMBER[number]} at byte {offset} is not in the file")
            elif name in entries:
                problems.append(f"{shown}: twice")
            else:
                entries[name] = TensorEntry(name, tuple(reversed(shape)), _BY_NUMBER[number], data + offset, nbytes)
        if problems:
            raise InputError(f"{self.path}: these tensors cannot be read. {REPAIR}", problems[:20])
        return entries

    def data(self, entry: TensorEntry) -> memoryview:
        """The bytes of a tensor in the mapped file."""
        return memoryview(self.mapping)[entry.start : entry.start + entry.nbytes]


class _Cursor:
    """Reads values one after the other; every length is checked against what is left of the file."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.buffer, self.place = path, data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.buffer) - self.place:
            raise InputError(f"{self.path}: ends within its header, so the file is incomplete. {REPAIR}")
        self.place += size
        return self.buffer[self.place - size : self.place]

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, least: int) -> int:
        """A number of things that take at least `least` bytes each."""
        number: int = self.scalar("<Q")
        if number * least > len(self.buffer) - self.place:
            raise InputError(f"{self.path}: announces {number:,} entries, more than the file holds. {REPAIR}")
        return number

    def text(self) -> str:
        size = self.count(1)
        if size > LONGEST_TEXT:
            raise InputError(f"{self.path}: has a text of {size:,} bytes; at most {LONGEST_TEXT:,}. {REPAIR}")
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise InputError(f"{self.path}: unknown type of a value, {kind}. {REPAIR}")
        inner = self.scalar("<I")
        if inner == _TEXT:
            return [self.text() for _ in range(self.count(8))]
        if inner not in _SCALARS:
            raise InputError(f"{self.path}: unknown type of the values of a list, {inner}. {REPAIR}")
        code = _SCALARS[inner]
        size = struct.calcsize(code)
        number = self.count(size)
        return list(struct.unpack(f"<{number}{code[1]}", self.take(number * size)))


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor to write: its name, shape (outer dimension first), format, and a function that returns its bytes."""

    name: str
    shape: tuple[int, ...]
    format: str
    data: Callable[[], bytes | memoryview]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        weights = 1
        for size in self.shape:
            weights *= size
        layout = FORMATS[self.format]
        return weights // layout.weights * layout.nbytes


def write_gguf(file: IO[bytes], metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite]) -> None:
    """Writes a GGUF file, version 3. The bytes of one tensor at a time are in memory.

    Integers become uint32 (uint64 or int32 where they need it), floats float32; lists are of texts, booleans, int32 or
    float32, and bytes become a list of uint8.
    """
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    offset = 0
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))
        header += _text(tensor.name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        header += struct.pack("<IQ", FORMATS[tensor.format].number, offset)
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    header += bytes(-len(header) % ALIGNMENT)
    file.write(header)
    for tensor in tensors:
        data = memoryview(tensor.data()).cast("B")
        if len(data) != tensor.nbytes:
            raise ValueError(f"{tensor.name}: {len(data)} bytes, {tensor.nbytes} announced")
        file.write(data)
        file.write(bytes(-tensor.nbytes % ALIGNMENT))


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bytes):
        return struct.pack("<IIQ", _ARRAY, _UINT8, len(value)) + value
    if isinstance(value, list | tuple):
        return struct.pack("<I", _ARRAY) + _list(value)
    kind = _kind(value)
    return struct.pack("<I", kind) + (_text(value) if kind == _TEXT else struct.pack(_SCALARS[kind], value))


def _list(values: Iterable[Any]) -> bytes:
    values = list(values)
    kinds = {_kind(value) for value in values}
    if kinds == {_TEXT}:
        return struct.pack("<IQ", _TEXT, len(values)) + b"".join(map(_text, values))
    kind = _BOOL if kinds == {_BOOL} else _FLOAT32 if _FLOAT32 in kinds else _INT32
    return struct.pack("<IQ", kind, len(values)) + struct.pack(f"<{len(values)}{_SCALARS[kind][1]}", *values)


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _INT32 if value < 0 else _UINT32 if value < 2**32 else _UINT64
    if isinstance(value, float):
        return _FLOAT32
    if isinstance(value, str):
        return _TEXT
    raise TypeError(f"{value!r}: GGUF has no such value")


def gguf_in(path: str | Path) -> Path | None:
    """The GGUF file of a model given by its path: the file itself, or the one file of a folder without config.json.

    None if the path is something else. A model in several files (`NAME-00001-of-00003.gguf`) is given by its first.
    Raises InputError for a folder with several models.
    """
    path = Path(path)
    if path.suffix == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return None
    found = sorted(each for each in path.glob(f"*{SUFFIX}") if not _is_later_part(each))
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise InputError(f"{path}: holds {len(found)} GGUF models ({names}); name one of the files.")
    return found[0] if found else None


def _is_later_part(path: Path) -> bool:
    stem, _, count = path.stem.rpartition("-of-")
    part = stem.rpartition("-")[2]
    return part.isdigit() and count.isdigit() and int(part) > 1
