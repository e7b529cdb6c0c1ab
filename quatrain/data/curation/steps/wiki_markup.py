"""Turns the markup of MediaWiki into plain text with gensim: links become their words, templates and tables vanish."""

from __future__ import annotations

import re
from typing import Literal

from quatrain.core.libraries import require
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Step, StepContext, StepSettings

_HEADING = re.compile(r"^=+\s*(.*?)\s*=+[ \t]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"'{2,}")
_LIST = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_BLANK = re.compile(r"\n{3,}")
_REDIRECT = re.compile(r"\s*#redirect", re.IGNORECASE)
_LAST_SECTIONS = re.compile(
    r"^=+\s*(?:references|external links|further reading|see also|notes|bibliography)\s*=+.*", re.I | re.M | re.S
)


class WikiMarkupSettings(StepSettings):
    """`appendices`: keep the sections of references and links at the end."""

    kind: Literal["wiki_markup"] = "wiki_markup"
    appendices: bool = False


class WikiMarkup(Step):
    """Replaces markup by text. Documents that are no page of a dump pass unchanged."""

    Settings = WikiMarkupSettings
    about = "plain text of MediaWiki pages"
    memory = 150_000_000

    def __init__(self, settings: WikiMarkupSettings, context: StepContext):
        super().__init__(settings, context)
        with require("the step wiki_markup", "gensim", "classic"):
            from gensim.corpora.wikicorpus import filter_wiki
        self.plain = filter_wiki

    def apply(self, document: SourceDocument) -> Removal | None:
        if document.fields.get("format") != "wiki":
            return None
        text = document.text
        if _REDIRECT.match(text):
            return Removal("a redirect")
        if not self.settings.appendices:
            text = _LAST_SECTIONS.sub("", text)
        text = _HEADING.sub(r"\1", _EMPHASIS.sub("", self.plain(text, promote_remaining=True, simplify_links=True)))
        document.text = _BLANK.sub("\n\n", _LIST.sub("", text)).strip()
        document.fields.pop("format")
        return Removal("no text besides markup") if not document.text else None


STEP = WikiMarkup
