"""Token files: a tokenized corpus on disk, built in constant memory and memory-mapped for reading.

A token file is a folder with `tokens.bin` (little-endian uint16, or uint32 for large vocabularies), `documents.bin`
(little-endian uint64, the start of each document) and `tokens.json` (metadata and checksums). The last is written at
the end: a folder without it is incomplete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from quatrain.core.atomic import atomic_write, disk_errors, write_json
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.reading import sha256_of
from quatrain.data.documents import DocumentChunk
from quatrain.tokenizers.text_splits import PIECE, cut, cut_pattern
from quatrain.tokenizers.tokenizer import Tokenizer

TOKENS, DOCUMENTS, ABOUT = "tokens.bin", "documents.bin", "tokens.json"
_FORMAT = 1
#: Limits on one tokenizer call: enough texts for all cores, few enough for constant memory.
_BATCH_CHARACTERS, _BATCH_TEXTS = 32 * PIECE, 2048

Progress = Callable[[int, int], None]
"""Called with the tokens written and the characters read so far."""


class TokenFile:
    """A memory-mapped token file, or a range of one.

    `len(file)` is the number of tokens; `file[a:b]` are int64 ids of shape (b - a,); `file[i]` is an int.
    """

    def __init__(self, folder: str | Path, start: int = 0, stop: int | None = None):
        """Open the token file in `folder`, or its tokens [start, stop).

        Raises InputError if the folder has no token file, QuatrainError if its files do not match each other.
        """
        self.folder = Path(folder)
        self.about = _read_about(self.folder)
        dtype = np.dtype(self.about["dtype"]).newbyteorder("<")
        whole = _mapped(self.folder / TOKENS, dtype, self.about["tokens"])
        self.start, self.stop, _ = slice(start, stop).indices(len(whole))
        self.tokens: np.ndarray = whole[self.start : self.stop]
        """The ids as they are stored, shape (len,), without a copy."""

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...
    def __getitem__(self, index: int | slice) -> int | np.ndarray:
        if isinstance(index, slice):
            return self.tokens[index].astype(np.int64)
        return int(self.tokens[index])

    @property
    def document_starts(self) -> np.ndarray:
        """The sorted int64 indices of the first token of each document, relative to the start of this range."""
        starts = _mapped(self.folder / DOCUMENTS, np.dtype("<u8"), self.about["documents"]).astype(np.int64)
        return starts[(starts >= self.start) & (starts < self.stop)] - self.start

    @property
    def vocab_size(self) -> int:
        """The vocabulary size of the tokenizer; all ids are below it."""
        return int(self.about["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenizer that encoded the file."""
        return str(self.about["tokenizer"])

    def split(self, validation: float) -> tuple[TokenFile, TokenFile]:
        """Split off the last share `validation` of the tokens (0 <= validation < 1): (training, validation)."""
        if not 0 <= validation < 1:
            raise InputError(f"validation {validation}: must be at least 0 and less than 1")
        border = self.start + int(len(self) * (1 - validation))
        return TokenFile(self.folder, self.start, border), TokenFile(self.folder, border, self.stop)

    def verify(self) -> None:
        """Read the whole file and raise QuatrainError if it differs from its checksums."""
        for name, key in ((TOKENS, "sha256"), (DOCUMENTS, "documents_sha256")):
            if sha256_of(self.folder / name) != self.about[key]:
                raise QuatrainError(
                    f"{self.folder / name} differs from its checksum. Remove {self.folder} and build it again"
                )

    def __repr__(self) -> str:
        return f"TokenFile({str(self.folder)!r}, tokens={len(self):,}, vocab_size={self.vocab_size})"


def build(
    documents: Iterable[str | DocumentChunk],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    separator: int | None = -1,
    source: str | None = None,
    progress: Progress | None = None,
) -> TokenFile:
    """Tokenize a stream of documents, or of document chunks (`documents.read_chunks`), into a token file.

    The token id `separator` is written between documents: by default (-1) the tokenizer's EOS, if any; None writes
    nothing. A document that already ends with it gets no second one. `source` is recorded in tokens.json. An existing
    token file in the folder stays until the new one is complete.

    Raises InputError if there are no tokens, QuatrainError for a full disk or an unwritable folder.
    """
    folder = Path(folder)
    eos = tokenizer.eos_id if separator == -1 else separator
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (*folder.glob(f".{TOKENS}.*.partial"), *folder.glob(f".{DOCUMENTS}.*.partial")):
            stale.unlink(missing_ok=True)
    with atomic_write(folder / TOKENS, "wb") as tokens, atomic_write(folder / DOCUMENTS, "wb") as starts:
        writer = _Writer(tokens, starts, dtype, eos, progress)
        for batch in _batches(_cut(documents, tokenizer)):
            writer.write(batch, tokenizer.encode_batch([text for text, _ in batch]))
        if writer.count == 0:
            raise InputError("there are no tokens to write: the source has no text")
        writer.flush()
        # Without tokens.json the folder counts as incomplete.
        with disk_errors(folder):
            (folder / ABOUT).unlink(missing_ok=True)
    about: dict[str, Any] = {
        "format": _FORMAT,
        "dtype": {2: "uint16", 4: "uint32"}[dtype.itemsize],
        "tokens": writer.count,
        "documents": writer.documents,
        "characters": writer.characters,
        "separator": eos,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "sha256": writer.digest.hexdigest(),
        "documents_sha256": writer.documents_digest.hexdigest(),
    }
    write_json(folder / ABOUT, about | ({"source": source} if source is not None else {}))
    return TokenFile(folder)


def encoded(documents: Iterable[str | DocumentChunk], tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """The ids of documents or document chunks, in parts, each with whether it is the last part of its document."""
    for batch in _batches(_cut(documents, tokenizer)):
        for (_, last), ids in zip(batch, tokenizer.encode_batch([text for text, _ in batch]), strict=True):
            yield ids, last


class _Writer:
    """Appends ids to tokens.bin and document starts to documents.bin."""

    def __init__(
        self, tokens: IO[bytes], starts: IO[bytes], dtype: np.dtype, separator: int | None, progress: Progress | None
    ):
        self.tokens, self.starts, self.dtype, self.separator, self.progress = tokens, starts, dtype, separator, progress
        self.count = self.documents = self.characters = 0
        self.digest, self.documents_digest = hashlib.sha256(), hashlib.sha256()
        self.ended = True  # the next ids begin a document
        self.last: int | None = None
        self.pending: list[int] = []

    def write(self, batch: list[tuple[str, bool]], ids: list[list[int]]) -> None:
        out: list[int] = []
        for (text, last), each in zip(batch, ids, strict=True):
            self.characters += len(text)
            if each and self.ended:
                if self.documents and self.separator is not None and self.last != self.separator:
                    out.append(self.separator)
                self.pending.append(self.count + len(out))
                self.documents += 1
                self.ended = False
            if each:
                out += each
                self.last = each[-1]
            self.ended = self.ended or last
        data = np.asarray(out, dtype=self.dtype).tobytes()
        self.tokens.write(data)
        self.digest.update(data)
        self.count += len(out)
        self.flush()
        if self.progress is not None:
            self.progress(self.count, self.characters)

    def flush(self) -> None:
        data = np.asarray(self.pending, dtype="<u8").tobytes()
        self.starts.write(data)
        self.documents_digest.update(data)
        self.pending = []


def _cut(documents: Iterable[str | DocumentChunk], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Parts that can be tokenized independently, each with whether it is the last of its document."""
    pattern = cut_pattern(tokenizer)
    stream = iter(documents)
    for first in stream:
        pending: str | None = None
        for text in cut(_document(first, stream), pattern):
            if pending is not None:
                yield pending, False
            pending = text
        yield pending or "", True


def _document(first: str | DocumentChunk, stream: Iterator[str | DocumentChunk]) -> Iterator[str]:
    """The texts of one document, its further chunks taken from `stream`."""
    for piece in chain([first], stream):
        if isinstance(piece, str):
            yield piece
            return
        yield piece.text
        if piece.last:
            return


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece[0])
        if length >= _BATCH_CHARACTERS or len(batch) >= _BATCH_TEXTS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        unfinished = (folder / TOKENS).exists()
        what = "was not finished; build it again" if unfinished else "is not there; build it first"
        raise InputError(f"the token file {folder} {what} (no {ABOUT})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}. Remove {folder} and build it again") from error
    needed = {"dtype": str, "tokens": int, "documents": int, "vocab_size": int, "tokenizer": str, "sha256": str}
    wrong = not isinstance(about, dict) or any(not isinstance(about.get(key), kind) for key, kind in needed.items())
    if wrong or about["dtype"] not in ("uint16", "uint32") or about.get("format") != _FORMAT:
        raise InputError(f"{path} does not describe a token file of this version. Remove {folder} and build it again")
    return about


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size != count * dtype.itemsize:
            raise QuatrainError(
                f"{path} has {size:,} bytes, expected {count * dtype.itemsize:,}: it is incomplete. "
                f"Remove {path.parent} and build it again"
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(count,))
    except OSError as error:
        raise QuatrainError(f"cannot read {path}: {error.strerror or error}") from error
