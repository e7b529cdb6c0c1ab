"""Files that are compressed as a whole, by their endings: gzip, bzip2 and xz, unpacked in blocks of bounded size."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from quatrain.core.errors import InputError

PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
"""Endings, and the names of their formats."""

FREE = 64 * 1024 * 1024
"""Unpacked bytes from which on the ratio counts."""

RATIO = 250
"""A file may unpack to so many times its size. Text reaches 30, logs that repeat themselves 100."""

XZ_MEMORY = 256 * 1024 * 1024
"""What unpacking xz may take; `xz -9` needs 65 MiB."""


def packing_of(path: Path) -> str | None:
    """How a file is compressed, as its ending says: "gzip", "bzip2", "xz"; None for not at all."""
    return PACKED.get(path.suffix.lower())


def unpacked(handle: IO[bytes], path: Path, packing: str, block: int) -> Iterator[bytes]:
    """The content of a compressed file in blocks of at most `block` bytes.

    Several compressed parts behind each other are one file, as gzip, bzip2 and xz have it. Raises InputError for a
    damaged file, and for one that unpacks to more than `RATIO` times its size.
    """
    given = produced = 0
    try:
        for found in _parts(handle, packing, block):
            produced += len(found)
            given = handle.tell()
            if produced > FREE and produced > RATIO * given:
                raise InputError(
                    f"{path} unpacks to more than {RATIO} times its size ({given:,} bytes became {produced:,}): it is "
                    "damaged or made to fill the memory. Unpack it, if it is meant so"
                )
            yield found
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error) or "it ends too early"
        raise InputError(f"{path} is not a whole {packing} file: {reason}. Get it again, or unpack it") from error


class _Gzip:
    """zlib's decompressor behind the interface of bz2's and lzma's."""

    def __init__(self) -> None:
        self.inner = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, limit: int) -> bytes:
        return self.inner.decompress(self.inner.unconsumed_tail + data, limit)

    @property
    def needs_input(self) -> bool:
        return not self.inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self.inner.eof

    @property
    def unused_data(self) -> bytes:
        return self.inner.unused_data


_MAKERS: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=XZ_MEMORY),
}


def _parts(handle: IO[bytes], packing: str, block: int) -> Iterator[bytes]:
    make = _MAKERS[packing]
    part, waiting, whole = None, b"", False
    while True:
        data = waiting or handle.read(min(block, 1 << 16))
        waiting = b""
        if part is None:
            # zeros may fill the space behind a part
            data = data.lstrip(b"\0") if whole else data
            if not data and not (waiting := handle.read(min(block, 1 << 16))):
                break
            if not data:
                continue
            part = make()
        elif not data and part.needs_input:
            raise EOFError("it ends before its last block does")
        found = part.decompress(data, block)
        if found:
            yield found
        while not part.eof and not part.needs_input:
            found = part.decompress(b"", block)
            if found:
                yield found
        if part.eof:
            waiting, part, whole = part.unused_data, None, True
    if not whole:
        raise EOFError("it is empty")
