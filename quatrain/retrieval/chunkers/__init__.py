"""Ways to cut a document into chunks, found by their place: a module with a `chunk` function is one.

Every chunk is a span of the document's text, so that its offsets are exact by construction.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from quatrain.core.settings import Problem, Settings, did_you_mean
from quatrain.retrieval.documents import Chunk, IndexDocument
from quatrain.retrieval.words import token_spans

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

Span = tuple[int, int]
MeasureTokens = Callable[[str], list[Span]]
"""The spans of a text's tokens, in their order, none empty."""


class ChunkSettings(Settings):
    """How documents are cut."""

    kind: str = "headings"
    """`headings`: sections, long ones by sentences; `sentences`: whole sentences; `tokens`: windows of tokens;
    `characters`: paragraphs, lines, words, whatever fits into `size` characters."""
    size: int = Field(default=200, ge=1)
    """The most tokens of a chunk; characters for the kind `characters`."""
    overlap: int = Field(default=40, ge=0)
    """Tokens (or characters) that a chunk repeats of the one before it, at most."""
    tokenizer: str | None = None
    """The folder of a tokenizer that counts the tokens; None: words and signs count."""

    def conflicts(self) -> Iterator[Problem]:
        if self.kind not in (known := chunkers()):
            yield Problem(
                ("kind",), f"{self.kind!r}; must be one of {', '.join(known)}{did_you_mean(self.kind, list(known))}"
            )
        if self.overlap > self.size or (self.overlap == self.size and self.kind != "characters"):
            yield Problem(("overlap",), f"{self.overlap}; must be less than size, {self.size}", also=(("size",),))


class Chunker(Protocol):
    """The `chunk` function of a module."""

    def __call__(self, document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens) -> list[Chunk]:
        """The chunks of a document, in the order of their beginnings."""


@cache
def chunkers() -> dict[str, Chunker]:
    """The ways to cut a document, by the name of their module."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.__name__.rpartition(".")[2]: module.chunk for module in modules if hasattr(module, "chunk")}


def chunks_of(document: IndexDocument, settings: ChunkSettings, measure: MeasureTokens = token_spans) -> list[Chunk]:
    """The chunks of a document. A document without text has none."""
    return chunkers()[settings.kind](document, settings, measure)


def measure_of(settings: ChunkSettings) -> MeasureTokens:
    """How the settings count tokens. Raises InputError for a folder without tokenizer."""
    if settings.tokenizer is None:
        return token_spans
    from quatrain.models.hub import resolve
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve(settings.tokenizer))
    return lambda text: _distinct(tokenizer, text)


def _distinct(tokenizer: Tokenizer, text: str) -> list[Span]:
    """The spans of a tokenizer's tokens; tokens that share a character, such as its bytes, are one."""
    spans: list[Span] = []
    for start, end in tokenizer.encode_with_offsets(text)[1]:
        if spans and start < spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        elif start < end:
            spans.append((start, end))
    return spans


def windows(spans: list[Span], size: int, overlap: int) -> Iterator[Span]:
    """Spans of `size` tokens each, which share `overlap` tokens; the last one ends with the last token."""
    step = max(1, size - overlap)
    for first in range(0, len(spans), step):
        part: Any = spans[first : first + size]
        yield part[0][0], part[-1][1]
        if first + size >= len(spans):
            return
