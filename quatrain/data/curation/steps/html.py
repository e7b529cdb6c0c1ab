"""Extracts the main text of HTML pages with trafilatura (Barbaresi 2021, ACL demo): no menus, no boilerplate."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from quatrain.core.libraries import require
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Step, StepContext, StepSettings

_LOOKS_LIKE_HTML = re.compile(r"\s*(?:<!doctype html|<html|<\?xml[^>]*\?>\s*<!doctype html)", re.IGNORECASE)


class HtmlSettings(StepSettings):
    """`favor`: rather lose text (`precision`) or rather keep boilerplate (`recall`)."""

    kind: Literal["html"] = "html"
    favor: Literal["balance", "precision", "recall"] = "balance"
    tables: bool = Field(default=True, description="keep the text of tables")
    comments: bool = Field(default=False, description="keep the comments of readers")


class Html(Step):
    """Replaces a page by its main text. Documents that are no HTML pass unchanged."""

    Settings = HtmlSettings
    about = "the main text of HTML pages"
    source = "trafilatura, ACL 2021"
    memory = 150_000_000

    def __init__(self, settings: HtmlSettings, context: StepContext):
        super().__init__(settings, context)
        with require("the step html", "trafilatura", "data"):
            import trafilatura
        self.extract = trafilatura.extract

    def apply(self, document: SourceDocument) -> Removal | None:
        if document.fields.get("format") != "html" and not _LOOKS_LIKE_HTML.match(document.text[:500]):
            return None
        found = self.extract(
            document.text,
            url=document.url or None,
            favor_precision=self.settings.favor == "precision",
            favor_recall=self.settings.favor == "recall",
            include_tables=self.settings.tables,
            include_comments=self.settings.comments,
        )
        if not found or not found.strip():
            return Removal("no main text")
        document.fields.pop("format", None)
        document.text = found
        return None


STEP = Html
