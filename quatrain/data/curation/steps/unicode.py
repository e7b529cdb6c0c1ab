"""Repairs encodings gone wrong with ftfy: "schÃ¶n" becomes "schön", and control characters vanish."""

from __future__ import annotations

import re
from typing import Any, Literal

from quatrain.core.libraries import require
from quatrain.data.curation.document import Removal, SourceDocument
from quatrain.data.curation.step import Step, StepContext, StepSettings

_UNUSUAL = re.compile(r"[^\t\n\x20-\x25\x27-\x7e]")
"""A text of tabs, line feeds and ASCII without & has nothing to repair."""


class UnicodeSettings(StepSettings):
    """`normalization`: Unicode's form of the result. `quotes`: typographic quotation marks become straight."""

    kind: Literal["unicode"] = "unicode"
    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    quotes: bool = False


class Unicode(Step):
    """Repairs the text; removes nothing."""

    Settings = UnicodeSettings
    about = "encodings gone wrong are repaired"
    source = "ftfy, doi 10.5281/zenodo.2591652"
    memory = 20_000_000

    def __init__(self, settings: UnicodeSettings, context: StepContext):
        super().__init__(settings, context)
        with require("the step unicode", "ftfy", "data"):
            import ftfy
        form: Any = None if settings.normalization == "none" else settings.normalization
        self.config = ftfy.TextFixerConfig(normalization=form, uncurl_quotes=settings.quotes, explain=False)
        self.fix = ftfy.fix_text

    def apply(self, document: SourceDocument) -> Removal | None:
        if _UNUSUAL.search(document.text):
            document.text = self.fix(document.text, self.config)
        return None if document.text.strip() else Removal("only control characters")


STEP = Unicode
