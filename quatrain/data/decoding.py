"""Reads files as text: decompresses, decodes and splits into lines, block by block, with exact errors for other files.

Encodings are UTF-8, with or without byte order mark, and UTF-16 or UTF-32 with one; line ends become "\\n". Files
compressed as a whole (gzip, bzip2, xz) are recognized by their suffix.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from quatrain.core.errors import InputError
from quatrain.core.reading import open_regular

PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
"""Suffix -> compression format."""

FREE = 64 * 1024 * 1024
"""The compression ratio is checked beyond this many decompressed bytes."""

RATIO = 250
"""The largest allowed compression ratio. Text reaches 30, repetitive logs 100."""

XZ_MEMORY = 256 * 1024 * 1024
"""Memory limit in bytes for decompressing xz; `xz -9` needs 65 MiB."""


def packing_of(path: Path) -> str | None:
    """The compression of a file by its suffix: "gzip", "bzip2" or "xz"; None if it has none."""
    return PACKED.get(path.suffix.lower())


def unpacked(handle: IO[bytes], path: Path, packing: str, block: int) -> Iterator[bytes]:
    """The decompressed content of a file in blocks of at most `block` bytes.

    Concatenated compressed streams are one file, as in gzip, bzip2 and xz. Raises InputError for a damaged file, and
    for one that decompresses to more than `RATIO` times its size.
    """
    consumed = produced = 0
    try:
        for data in _unpacked_parts(handle, packing, block):
            produced += len(data)
            consumed = handle.tell()
            if produced > FREE and produced > RATIO * consumed:
                raise InputError(
                    f"{path} unpacks to more than {RATIO} times its size ({consumed:,} bytes became {produced:,}): it "
                    "is damaged, or made to fill the memory. If you trust it, unpack it first"
                )
            yield data
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error) or "it is truncated"
        raise InputError(f"{path} is not a valid {packing} file: {reason}. Download it again, or unpack it") from error


class _Gzip:
    """zlib's decompressor with the interface of those of bz2 and lzma."""

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


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=XZ_MEMORY),
}


def _unpacked_parts(handle: IO[bytes], packing: str, block: int) -> Iterator[bytes]:
    make = _DECOMPRESSORS[packing]
    part, waiting, complete = None, b"", False
    while True:
        data = waiting or handle.read(min(block, 1 << 16))
        waiting = b""
        if part is None:
            # zero bytes may pad the space after a stream
            data = data.lstrip(b"\0") if complete else data
            if not data and not (waiting := handle.read(min(block, 1 << 16))):
                break
            if not data:
                continue
            part = make()
        elif not data and part.needs_input:
            raise EOFError("it is truncated")
        content = part.decompress(data, block)
        if content:
            yield content
        while not part.eof and not part.needs_input:
            content = part.decompress(b"", block)
            if content:
                yield content
        if part.eof:
            waiting, part, complete = part.unused_data, None, True
    if not complete:
        raise EOFError("it is empty")


BLOCK = 1 << 20
"""Bytes read at a time."""

MAX_LINE = 128 * 1024 * 1024
"""Limit on the characters of a line, and of a field of a table."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # starts with the mark of UTF-16, so it is tested first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or a Word, Excel or EPUB file)"),
    (b"\x1f\x8b", "a gzip file; give it the ending .gz"),
    (b"BZh91AY&SY", "a bzip2 file; give it the ending .bz2"),
    (b"\xfd7zXZ\x00", "an xz file; give it the ending .xz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file; unpack it first"),
    (b"SQLite format 3\x00", "a SQLite database; name it with data.database"),
    (b"PAR1\x15", "a Parquet file; give it the ending .parquet"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF89a", "a GIF image"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
)


def is_packed(path: Path) -> bool:
    """Whether a file has the suffix of a compressed file: .gz, .bz2 or .xz."""
    return packing_of(path) is not None


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, in lower case, without `.gz`, `.bz2` or `.xz`: ".jsonl" for `a.jsonl.gz`."""
    return (Path(path.stem).suffix if is_packed(path) else path.suffix).lower()


def read_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks, decompressed. Raises InputError for a damaged or unreadable file."""
    packing = packing_of(path)
    with open_regular(path) as handle:
        if packing is not None:
            yield from unpacked(handle, path, packing, BLOCK)
            return
        while True:
            try:
                block = handle.read(BLOCK)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from error
            if not block:
                return
            yield block


def check_head(path: Path) -> None:
    """Raise InputError for a file that is missing, empty or, by its first bytes, binary."""
    head = next(read_blocks(path), b"")
    if not head:
        raise InputError(f"{path} is empty")
    encoding, mark = _encoding(head)
    if encoding == "utf-8" and suffix_of(path) != ".parquet":
        _refuse_binary(path, head[len(mark) : len(mark) + 65536])


def read_text(path: Path) -> Iterator[str]:
    """The text of a file in chunks, in constant memory.

    Raises InputError with the byte, the line and a fix if the file is not text in a known encoding.
    """
    decoder: codecs.IncrementalDecoder | None = None
    encoding = "utf-8"
    place = _Place()
    # "\r\n" across two blocks is one line end
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for block in read_blocks(path):
        if decoder is None:
            encoding, mark = _encoding(block)
            if encoding == "utf-8":
                _refuse_binary(path, block[len(mark) : len(mark) + 65536])
            decoder = codecs.getincrementaldecoder(encoding)("strict")
            place.byte = len(mark)
            block = block[len(mark) :]
        yield newlines.decode(_decoded(path, decoder, encoding, block, place))
    if decoder is not None:
        yield newlines.decode(_decoded(path, decoder, encoding, b"", place, final=True), final=True)


class _Place:
    """The position up to which a file has been decoded."""

    def __init__(self) -> None:
        self.byte = 0
        self.line = 1


def _decoded(
    path: Path, decoder: codecs.IncrementalDecoder, encoding: str, block: bytes, place: _Place, *, final: bool = False
) -> str:
    waiting = decoder.getstate()[0]
    try:
        text = decoder.decode(block, final)
    except UnicodeDecodeError as error:
        at = place.byte - len(waiting) + error.start
        good = error.object[: error.start].decode(encoding, "ignore")
        raise InputError(_wrong_encoding(path, error, encoding, at, place.line + good.count("\n"))) from error
    place.byte += len(block)
    place.line += text.count("\n")
    if "\x00" in text:
        raise InputError(f"{path} is binary, not text: it holds zero bytes")
    return text


def _encoding(head: bytes) -> tuple[str, bytes]:
    """The encoding given by the byte order mark, and the mark; UTF-8 if there is none."""
    return next(((name, mark) for mark, name in _MARKS if head.startswith(mark)), ("utf-8", b""))


def _refuse_binary(path: Path, head: bytes) -> None:
    for magic, name in _MAGIC:
        if head.startswith(magic):
            raise InputError(f"{path} is not text: it looks like {name}")
    zeros = head.count(0)
    if not zeros:
        control = sum(head.count(byte) for byte in range(32) if byte not in (7, 8, 9, 10, 12, 13, 27))
        if control * 10 > max(len(head), 100):
            raise InputError(f"{path} is binary, not text")
        return
    for name, odd in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        if head[odd::2].count(0) * 5 > len(head[odd::2]) * 2 and head[1 - odd :: 2].count(0) * 20 < len(head):
            raise InputError(f"{path} looks like {name} without a byte order mark. Convert it: {_convert(path, name)}")
    raise InputError(f"{path} is binary, not text: it holds zero bytes")


def _wrong_encoding(path: Path, error: UnicodeDecodeError, encoding: str, at: int, line: int) -> str:
    return f"{path}:{line}: {explain_byte(path, error, encoding, at)}"


def explain_byte(path: Path, error: UnicodeDecodeError, encoding: str, at: int) -> str:
    """A message about the invalid byte at offset `at`, with the likely encoding and the command to convert the file."""
    data = error.object
    where = f"byte 0x{data[error.start]:02x} at offset {at:,} is not valid {encoding.upper()}"
    if encoding != "utf-8":
        return f"{where} ({error.reason}). Save the file as UTF-8"
    if error.reason == "unexpected end of data":
        return f"{where}: the file ends in the middle of a character. Download it again"
    high = [byte for byte in data if byte >= 0x80]
    # Latin-1 has no printable characters from 0x80 to 0x9F, Windows' code page 1252 has.
    guess = "cp1252" if any(byte < 0xA0 for byte in high) else "latin-1"
    excerpt = data[max(error.start - 12, 0) : error.start + 12].decode(guess, "replace")
    excerpt = " ".join(excerpt.split())
    return f"{where}. It looks like {guess} (“…{excerpt}…”). Convert it: {_convert(path, guess)}"


def _convert(path: Path, encoding: str) -> str:
    name = {"cp1252": "WINDOWS-1252", "latin-1": "ISO-8859-1"}.get(encoding, encoding)
    plain = path.with_suffix("") if is_packed(path) else path
    return f"iconv -f {name} -t UTF-8 {plain.name} > {plain.stem}.utf8{plain.suffix}"


def lines_of(pieces: Iterable[str], path: Path | None = None) -> Iterator[str]:
    """The lines of a text given in chunks, with their line ends; only "\\n" ends a line.

    Raises InputError, with the line number in `path`, for a line longer than `MAX_LINE`.
    """
    start: list[str] = []
    number = size = 0
    for piece in pieces:
        if "\n" not in piece:
            start.append(piece)
            size += len(piece)
            if size > MAX_LINE:
                raise InputError(
                    f"{path or 'the text'}:{number + 1}: a line of more than {MAX_LINE:,} characters; split it"
                )
            continue
        first, *rest = piece.split("\n")
        yield "".join([*start, first, "\n"])
        number += len(rest)
        for line in rest[:-1]:
            yield line + "\n"
        start, size = [rest[-1]], len(rest[-1])
    last = "".join(start)
    if last:
        yield last
