"""Removes pages by their address: domains and words of lists that the user gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from quatrain.core.reading import read_text
from quatrain.core.settings import Listing, Problem
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Step, StepContext, StepSettings

_WORDS = re.compile(r"[^a-z0-9]+")
MOST_BYTES = 1 << 28
"""Bytes of a list that are read; the largest public ones have 100 MB."""


class UrlSettings(StepSettings):
    """`domains` and `words` are lists, `domain_file` and `word_file` files with an entry a line; # begins a comment.

    A domain covers its subdomains. A page with `min_words` different words in its address is removed.
    """

    kind: Literal["url"] = "url"
    domains: Listing[str] = ()
    words: Listing[str] = ()
    domain_file: str | None = Field(default=None, min_length=1)
    word_file: str | None = Field(default=None, min_length=1)
    min_words: int = Field(default=1, ge=1)
    required: bool = Field(default=False, description="remove documents without an address")

    def conflicts(self) -> Iterator[Problem]:
        if not (self.domains or self.words or self.domain_file or self.word_file or self.required):
            yield Problem((), "has no list; must have domains, words, domain_file or word_file")


class Url(Step):
    """Looks at the field `url`."""

    Settings = UrlSettings
    about = "addresses that are on no list"
    source = "RefinedWeb, arXiv 2306.01116, G.1"
    memory = 200_000_000

    def __init__(self, settings: UrlSettings, context: StepContext):
        super().__init__(settings, context)
        self.domains = frozenset(domain.lower() for domain in entries(settings.domains, settings.domain_file))
        self.words = frozenset(word.lower() for word in entries(settings.words, settings.word_file))

    def apply(self, document: SourceDocument) -> Removal | None:
        url = document.url.lower()
        if not url:
            return Removal("no address") if self.settings.required else None
        try:
            host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
        except ValueError:
            return Removal("a broken address")
        labels = host.split(".")
        for number in range(len(labels)):
            if (domain := ".".join(labels[number:])) in self.domains:
                return Removal("a listed domain", domain)
        found = self.words.intersection(_WORDS.split(url))
        if self.words and len(found) >= self.settings.min_words:
            return Removal("listed words", ", ".join(sorted(found)))
        return None


def entries(given: tuple[str, ...], path: str | None) -> list[str]:
    """The entries of a list and of a file. Raises InputError for a file that cannot be read."""
    found = list(given)
    if path is not None:
        lines = (line.partition("#")[0].strip() for line in read_text(path, MOST_BYTES).splitlines())
        found += [line for line in lines if line]
    return found


STEP = Url
