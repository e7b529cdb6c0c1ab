"""Builds an index, and brings an older one up to date: only files whose content has changed are read again.

Everything is written in small transactions, to a draft beside the content that is read until the draft is whole. A
second call of the same command continues what a kill has left.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.locks import FolderLock
from quatrain.core.progress import SilentReporter
from quatrain.core.reading import exists, sha256_of, user_path
from quatrain.core.reporter import Reporter
from quatrain.core.wording import printable
from quatrain.data import catalog
from quatrain.retrieval.bm25 import Bm25
from quatrain.retrieval.chunkers import chunks_of, measure_of
from quatrain.retrieval.contents import Draft, known_settings, number_of
from quatrain.retrieval.documents import IndexDocument
from quatrain.retrieval.encoders import FileEncoder, encoder_modality, kind_of, modalities_of
from quatrain.retrieval.index import BM25_FOLDER, Index, state_of
from quatrain.retrieval.readers import MARKER, TEXT, files_of, read_documents, unread
from quatrain.retrieval.settings import INDEXES, IndexSettings
from quatrain.retrieval.stores import Counts, SourceState, Store, open_store
from quatrain.retrieval.words import Analyzer

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 4_000_000
"""What is written in one transaction, at most."""
ENCODED, ENCODED_FILES = 256, 32
"""Chunks, and files such as pictures, that get their vectors at a time."""
NAMED = 20
"""Files left out that a report names."""


@dataclass
class BuildReport:
    """What a build did."""

    folder: Path
    read: int = 0
    """Files that were new, changed or unfinished."""
    unchanged: int = 0
    removed: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Files that are not in the index, with the reason."""
    encoded: int = 0
    """Chunks that got vectors."""
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0))

    def lines(self) -> list[str]:
        """The files that were left out, by their reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            reasons.setdefault(reason, []).append(name)
        return [
            f"left out ({reason}): {len(names):,}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for reason, names in sorted(reasons.items(), key=lambda each: -len(each[1]))[:NAMED]
        ]


def source_files(
    source: str | Path, modalities: Collection[str] = (TEXT,)
) -> tuple[str, list[tuple[str, Path]], list[tuple[str, str]]]:
    """What a source is made of: its name, its files by their names in the index, and those left out with a reason.

    A source is a folder, a file, or a name of the catalog. `modalities` are what the encoders read; other files are
    left out. Raises InputError where there is nothing.
    """
    entry = catalog.find(str(source)) if not exists(source) else None
    if entry is not None:
        path = catalog.fetch(entry)
        return str(source), [(path.name, path)], []
    path = user_path(source, "the source")
    if not path.exists():
        raise InputError(f"{path} does not exist; give a folder, a file, or a name of the catalog such as medquad")
    if path.is_file():
        if reason := unread(path, modalities):
            return str(path), [], [(path.name, reason)]
        return str(path), [(name_of(path, path.parent), path)], []
    found, left = [], []
    for file, reason in files_of(path, modalities):
        name = name_of(file, path)
        if reason is None:
            found.append((name, file))
        else:
            left.append((name, reason))
    return str(path), found, left


def name_of(path: Path, root: Path) -> str:
    """The name of a file in an index: its path in the folder, with bytes that are no UTF-8 and controls escaped."""
    text = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
    return printable(text).replace("\n", "\\n")


def default_folder(source: str | Path) -> Path:
    """Where the index of a source is made unless a folder is named: `indexes/NAME`."""
    path = Path(source)
    stem = path.resolve().name if path.is_dir() else path.name.split(".")[0] or str(source)
    return Path(INDEXES) / (stem or "index")


def build_index(
    source: str | Path,
    folder: str | Path | None = None,
    settings: IndexSettings | None = None,
    *,
    reporter: Reporter | None = None,
) -> BuildReport:
    """Make the index of a folder, a file or a catalog name, or bring it up to date.

    Without `settings` an index that is there keeps its own. Raises InputError for a source without any text, and
    QuatrainError where another process builds the same index.
    """
    reporter = reporter or SilentReporter()
    place = default_folder(source) if folder is None else user_path(folder, "the index")
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file; give a folder for the index")
    has_marker = (place / MARKER).is_file()
    if place.is_dir() and not has_marker and any(map(_is_foreign, place.iterdir())):
        raise InputError(f"{place} is no index and not empty; give a new folder for the index")
    if settings is None:
        settings = known_settings(place) or IndexSettings()
    for name in settings.dense:
        _check_encoder(name)
    Analyzer(settings.language)  # Refuses a missing library before anything is read.
    origin, files, left = source_files(source, modalities_of(settings.dense))
    if not files:
        raise InputError(
            f"{source} has no file that can be read", [f"{name}: {reason}" for name, reason in left[:NAMED]]
        )
    place.mkdir(parents=True, exist_ok=True)
    with FolderLock(place):
        draft = Draft(place, settings, str(Path(origin).resolve()) if exists(origin) else origin)
        build = _Build(draft, reporter, BuildReport(place, left_out=left))
        try:
            build.read(files)
            build.count_words()
            build.encode(dict(files))
            build.count_words()  # Files that an encoder could not read are gone.
            build.report.counts = build.store.counts()
        finally:
            build.store.close()
        if not build.report.counts.chunks:
            draft.discard()
            problems = [f"{name}: {reason}" for name, reason in build.report.left_out[:NAMED]]
            raise InputError(f"{source} has no text that can be searched", problems)
        draft.finish()
    return build.report


def _is_foreign(path: Path) -> bool:
    """Whether a file is none of an index whose first build was killed."""
    return not path.name.startswith(".") and number_of(path) is None


def _check_encoder(name: str) -> None:
    kind: Any = kind_of(name)
    if hasattr(kind, "check"):
        kind.check()


class _Build:
    """The steps of one build. `store` is that of the current content until something is to be written."""

    def __init__(self, draft: Draft, reporter: Reporter, report: BuildReport):
        self.draft, self.settings, self.reporter, self.report = draft, draft.settings, reporter, report
        unchanged = draft.current if draft.path is None else None
        self.is_writing = unchanged is None
        self._open(unchanged or draft.open())

    def _open(self, content: Path) -> None:
        settings = self.settings
        self.store = open_store(settings.store, content, settings.location, read_only=not self.is_writing)
        self.index = Index(self.draft.folder, content, settings, self.store, self.draft.source)

    def writable(self) -> Store:
        """The store of the draft, which is made where there is none."""
        if not self.is_writing:
            self.is_writing = True
            self.store.close()
            self._open(self.draft.open())
        return self.store

    def read(self, files: list[tuple[str, Path]]) -> None:
        """Read what is new, changed or unfinished, and forget what is gone."""
        known, names = self.store.sources(), {name for name, _ in files}
        for name in known.keys() - names:
            self.writable().remove(name)
            self.report.removed += 1
        measure, more = measure_of(self.settings.chunks), self.settings.reading_digest()
        with self.reporter.task("read", total=len(files), unit="file") as task:
            for number, (name, path) in enumerate(files, 1):
                try:
                    digest = f"{sha256_of(path)} {more}"
                    state = known.get(name)
                    if state is not None and state.digest == digest and state.complete:
                        self.report.unchanged += 1
                        continue
                    done = state.documents if state is not None and state.digest == digest else 0
                    batches = _batches(islice(read_documents(path, self.settings.columns), done, None))
                    first = list(islice(batches, 1))  # A file that cannot be read changes nothing.
                    store = self.writable()
                    if not done:
                        known.setdefault(name, SourceState(digest, 0, complete=False))
                        store.begin(name, digest)
                    for batch in chain(first, batches):
                        store.add(name, [(each, chunks_of(each, self.settings.chunks, measure)) for each in batch])
                    store.finish(name)
                    self.report.read += 1
                except InputError as error:
                    if name in known:
                        self.writable().remove(name)
                    self.report.left_out.append((name, _reason(error, path)))
                finally:
                    task.update(number)

    def count_words(self) -> None:
        """BM25 of all chunks, where the saved one is of other chunks."""
        ids = self.store.chunk_ids()
        analyzer, state = Analyzer(self.settings.language), state_of(ids)
        if Bm25.load(self.index.content / BM25_FOLDER, state, analyzer) is None:
            self.writable()
            with self.reporter.task("count words", total=len(ids), unit="chunk") as task:
                Bm25.build(_counted(self.index.texts(), task), ids, analyzer).save(
                    self.index.content / BM25_FOLDER, state
                )

    def encode(self, files: Mapping[str, Path]) -> None:
        """Vectors of the chunks that have none; `files` are those of the source by their names in the index."""
        for space in self.store.spaces():
            if space not in self.settings.dense:
                self.writable().clear_vectors(space)
        total = self.store.counts().chunks
        for space in self.settings.dense if total else ():
            encoder = self._encoder(space, total)
            if self.store.get(f"encoder {space}") != encoder.fingerprint:
                self.writable().clear_vectors(space)
                self.store.set(f"encoder {space}", encoder.fingerprint)
            wanted = self.index.chunks_for(encoder)
            missing = [number for number in self.store.without_vector(space) if number in wanted]
            is_of_files = encoder_modality(space) != TEXT
            size = ENCODED_FILES if is_of_files else ENCODED
            if missing:
                self.writable()
            with self.reporter.task(f"vectors of {space}", total=len(missing), unit="chunk") as task:
                for start in range(0, len(missing), size):
                    numbers = missing[start : start + size]
                    if is_of_files:
                        self._encode_files(space, encoder, numbers, files)
                    else:
                        self.store.set_vectors(space, numbers, encoder.encode(self.index.texts_of(numbers)))
                        self.report.encoded += len(numbers)
                    task.advance(len(numbers))

    def _encode_files(self, space: str, encoder: FileEncoder, numbers: list[int], files: Mapping[str, Path]) -> None:
        """Vectors of files; one that cannot be decoded leaves the index, with the reason."""
        prepared, kept = [], []
        for chunk in self.store.chunks(numbers):
            name = self.index.document(chunk.document).source
            try:
                prepared.append(encoder.prepare(files[name]))
                kept.append(chunk.id)
            except InputError as error:
                self.store.remove(name)
                self.report.left_out.append((name, _reason(error, files[name])))
        if kept:
            self.store.set_vectors(space, kept, encoder.encode_prepared(prepared))
            self.report.encoded += len(kept)

    def _encoder(self, space: str, total: int) -> Any:
        """The encoder of a space; one that is fitted on the chunks is fitted where it does not suit them."""
        kind: Any = kind_of(space)
        encoder = kind.open_encoder(space, self.index.content, self.settings.language)
        if encoder is None or (hasattr(encoder, "fits") and not encoder.fits(total)):
            self.reporter.info(f"fitting {space} on {total:,} chunks")
            encoder = kind.fit((text for _, text in self.index.texts()), self.settings.language)
            self.writable()
            encoder.save(self.index.content)
        return encoder


def _reason(error: InputError, path: Path) -> str:
    """Why a file is left out, without its path."""
    return error.message.replace(str(path), "it", 1).removeprefix("it: ")


def _counted(texts: Iterator[tuple[int, str]], task: Any) -> Iterator[str]:
    for number, (_, text) in enumerate(texts, 1):
        yield text
        if number % 1000 == 0:
            task.update(number)


def _batches(documents: Iterator[IndexDocument]) -> Iterator[list[IndexDocument]]:
    """Documents in groups that are written together."""
    batch: list[IndexDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
