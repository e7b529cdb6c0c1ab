"""`quatrain index`: makes the index of a folder of documents, or brings it up to date."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class IndexOptions:
    """How an index is built; without any, one that is there keeps its own."""

    chunks: str | None = None
    """How documents are cut: headings, sentences, tokens, characters or whole."""
    size: int | None = None
    """The most tokens of a chunk, or characters."""
    overlap: int | None = None
    """How many of them a chunk repeats of the one before it."""
    tokenizer: str | None = None
    """The tokenizer that counts the tokens: a model's folder; otherwise words and signs count."""
    language: str | None = None
    """The language of stems and stop words, such as english or german, or none."""
    dense: tuple[str, ...] = ()
    """Vectors too: lsa, a file of word vectors, a model of sentence embeddings, or of pictures and texts (CLIP), which
    makes pictures searchable; may be given several times."""
    columns: str | None = None
    """The columns of tables, as text=answer,title=question."""
    store: Literal["sqlite", "qdrant"] | None = None
    """Where documents are kept: sqlite, a file in the index, or qdrant, a server."""
    location: str | None = None
    """The address of the store's server, as http://HOST:6333#NAME."""

    def settings(self, known: Any) -> Any:
        """The settings of an index, with the options over those that it has. Raises InputError."""
        from quatrain.cli.data import _columns
        from quatrain.core.settings import parse
        from quatrain.retrieval.settings import IndexSettings

        value = known.model_dump(mode="json") if known is not None else {}
        cut = {"kind": self.chunks, "size": self.size, "overlap": self.overlap, "tokenizer": self.tokenizer}
        if self.size is not None and self.overlap is None:
            cut["overlap"] = self.size // 5
        value["chunks"] = value.get("chunks", {}) | {key: each for key, each in cut.items() if each is not None}
        value |= {"dense": list(self.dense)} if self.dense else {}
        own = {"language": self.language, "store": self.store, "location": self.location}
        value |= {key: each for key, each in own.items() if each is not None}
        if self.columns is not None:
            value["columns"] = _columns(self.columns) or {}
        return parse(IndexSettings, value, what="the options of the index")


NO_OPTIONS = IndexOptions()


def index(
    source: str,
    to: str | None = None,
    *,
    options: IndexOptions = NO_OPTIONS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
    quiet: bool = False,
) -> int:
    """Make a folder of documents searchable: text, Markdown, HTML, PDF, DOCX, CSV, JSON lines, SQLite, pictures.

    A second call reads only what has changed, and continues what was stopped. Ask it with quatrain ask.

    Parameters
    ----------
    source
        A folder, a file, or a name of the catalog such as medquad.
    to
        The folder of the index; by default indexes/NAME.
    json_lines
        Write progress and the result as JSON, one object a line.
    quiet
        Show the result alone.
    """
    from quatrain.cli.output import show, show_json
    from quatrain.core.progress import create_reporter
    from quatrain.core.reading import user_path
    from quatrain.core.wording import format_duration
    from quatrain.retrieval.building import build_index, default_folder
    from quatrain.retrieval.contents import known_settings

    folder = default_folder(source) if to is None else user_path(to, "the index")
    started = time.perf_counter()
    report = build_index(
        source,
        folder,
        options.settings(known_settings(folder)),
        reporter=create_reporter(json_lines=json_lines, quiet=quiet),
    )
    seconds, counts = time.perf_counter() - started, report.counts
    if json_lines:
        show_json(
            {
                **{"event": "finished", "index": str(report.folder), "read": report.read},
                **{"unchanged": report.unchanged, "removed": report.removed, "left_out": report.left_out},
                **vars(counts),
                "seconds": round(seconds, 2),
            }
        )
        return 0
    for line in report.lines():
        show(line)
    show(
        f"{report.folder}: {counts.documents:,} documents of {counts.sources:,} files, {counts.chunks:,} chunks"
        + (f", {counts.vectors:,} vectors" if counts.vectors else "")
        + f"; {report.read:,} files read, {report.unchanged:,} unchanged, {report.removed:,} gone, in "
        + f"{format_duration(seconds)}."
    )
    show(f'Ask it: quatrain ask {report.folder} "…"')
    return 0
