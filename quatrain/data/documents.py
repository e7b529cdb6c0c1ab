"""Streams documents from files and folders in constant memory, whatever the size of a file.

A plain text file is one document and is read in chunks; a record of JSON lines, CSV, TSV or Parquet is one document.
`quatrain.data.corpus.Corpus` reads all other data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from quatrain.core.errors import InputError
from quatrain.core.reading import lone_surrogate
from quatrain.core.wording import type_name
from quatrain.data.corpus import Corpus
from quatrain.data.decoding import read_text
from quatrain.data.download import DownloadProgress
from quatrain.data.gutenberg import strip_pieces
from quatrain.data.huggingface import HuggingFaceSource
from quatrain.data.records import Conversation, Message, Preference, Problems, RatedAnswer, Row, field_names
from quatrain.data.rows import read_records
from quatrain.data.sources import OnSkipped, find_files, is_dataset, is_record_file

__all__ = [
    "DocumentChunk",
    "Preference",
    "RatedAnswer",
    "detect",
    "read_conversations",
    "read_documents",
    "read_chunks",
    "read_preferences",
    "read_ratings",
]


class DocumentChunk(NamedTuple):
    """A part of a document; `last` marks the final part, after which the next document begins."""

    text: str
    last: bool


def read_chunks(
    source: str | Path,
    *,
    column: str = "text",
    skipped: OnSkipped | None = None,
    progress: DownloadProgress | None = None,
) -> Iterator[DocumentChunk]:
    """The documents of `source` (a catalog name, a file, a folder, a data set) in chunks of about a megabyte.

    `column` is the field of records that holds the text. Project Gutenberg's header and footer are removed. `skipped`
    is called for each file of a folder that is not read, `progress` during a download. Raises InputError with all
    faults of all files at once.
    """
    if is_dataset(source):
        rows = HuggingFaceSource(str(source)).rows()
        return _of_rows(rows, column, f"{source} cannot be read as documents")
    files = find_files(source, skipped=skipped, progress=progress)
    return _pieces(files, column)


def read_documents(
    source: str | Path,
    *,
    column: str = "text",
    skipped: OnSkipped | None = None,
    progress: DownloadProgress | None = None,
) -> Iterator[str]:
    """The documents of `source`, each as one string; otherwise as `read_chunks`."""
    parts: list[str] = []
    for chunk in read_chunks(source, column=column, skipped=skipped, progress=progress):
        parts.append(chunk.text)
        if chunk.last:
            yield "".join(parts)
            parts = []


def read_conversations(
    source: str | Path, *, skipped: OnSkipped | None = None, progress: DownloadProgress | None = None
) -> Iterator[list[Message]]:
    """The conversations of a source, each a list of {"role": …, "content": …}; the fields of a row tell its format.

    Raises InputError with the first 20 faults and the count of all, each with file and line.
    """
    corpus = Corpus(source, format="chat", skipped=skipped, progress=progress)
    return (cast(Conversation, record).messages for record in corpus)


def read_preferences(
    source: str | Path, *, skipped: OnSkipped | None = None, progress: DownloadProgress | None = None
) -> Iterator[Preference]:
    """The preference pairs of a source; formats in `quatrain.data.preference_rows`, errors as in `read_conversations`.

    Two whole dialogues are split at the first message in which they differ. Ranked and scored answers give every two
    of unequal rank.
    """
    corpus = Corpus(source, format="preference", skipped=skipped, progress=progress)
    return (cast(Preference, record) for record in corpus)


def read_ratings(
    source: str | Path, *, skipped: OnSkipped | None = None, progress: DownloadProgress | None = None
) -> Iterator[RatedAnswer]:
    """The rated answers (thumbs up or down) of a source; a preference pair gives one of each."""
    corpus = Corpus(source, format="rated", skipped=skipped, progress=progress)
    return (cast(RatedAnswer, record) for record in corpus)


def detect(source: str | Path, *, progress: DownloadProgress | None = None) -> str:
    """The format of `source`, one of `quatrain.data.formats.FORMATS`, detected from its first rows."""
    return Corpus(source, progress=progress).format


def _pieces(files: list[Path], column: str) -> Iterator[DocumentChunk]:
    empty = True
    for number, path in enumerate(files):
        try:
            for chunk in _of_file(path, column):
                empty = False
                yield chunk
        except InputError as error:
            raise _with_the_others(error, files[number + 1 :], column) from error
    if empty:
        names = files[0] if len(files) == 1 else f"all {len(files)} files"
        raise InputError(f"there is no text in {names}, only white space")


def _of_file(path: Path, column: str) -> Iterator[DocumentChunk]:
    if is_record_file(path):
        yield from _of_records(path, column)
    else:
        yield from _one_document(strip_pieces(read_text(path)))


def _one_document(pieces: Iterator[str]) -> Iterator[DocumentChunk]:
    """The chunks of one document, the last one marked; none if it is only white space."""
    pending = ""
    begun = False
    for piece in pieces:
        if not begun:
            pending += piece
            begun = bool(pending.strip())
        elif piece:
            yield DocumentChunk(pending, False)
            pending = piece
    if begun:
        yield DocumentChunk(pending, True)


def _of_records(path: Path, column: str) -> Iterator[DocumentChunk]:
    yield from _of_rows(read_records(path, column=column), column, f"{path} cannot be read as documents")


def _of_rows(rows: Iterator[Row], column: str, wrong: str) -> Iterator[DocumentChunk]:
    problems = Problems()
    for record in rows:
        text, fault = _text(record, column)
        if fault is not None:
            problems.add(f"{record.place}: {fault}")
        elif text and not problems:
            yield DocumentChunk(text, True)
    if problems:
        raise problems.error(wrong)


def _text(record: Row, column: str) -> tuple[str, str | None]:
    """The text of a row and its fault, if any. Null or white space is not a fault but gives no document."""
    value: Any = record.value
    if record.fault is not None:
        return "", record.fault
    if isinstance(value, dict):
        if column not in value:
            chat = {"messages", "conversations", "instruction", "prompt", "chosen"} & set(value)
            hint = " (this looks like chats: use the file in a finetune stage)" if chat else ""
            return "", f"no field {column!r}; the row has {field_names(value)}{hint}"
        value = value[column]
    if value is None:
        return "", None
    if not isinstance(value, str):
        return "", f"field {column!r} is {type_name(value)}, must be text"
    if (fault := lone_surrogate(value)) is not None:
        return "", f"field {column!r}: {fault}"
    return (value, None) if value.strip() else ("", None)


def _with_the_others(error: InputError, rest: list[Path], column: str) -> InputError:
    """The error of one file together with those of the files after it, so that all can be fixed at once."""
    faults = [error]
    for path in rest:
        try:
            for _ in _of_file(path, column):
                pass
        except InputError as another:
            faults.append(another)
    if len(faults) == 1:
        return error
    return InputError(
        f"{len(faults)} files cannot be read",
        [line for fault in faults for line in (fault.message, *fault.problems)],
    )
