"""Keeps the languages that are wanted, as lingua detects them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from quatrain.core.libraries import require
from quatrain.core.settings import Listing, Problem, did_you_mean
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Limit, RuleStep, StepContext, StepSettings

COMMON = ("ar", "de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "sv", "tr", "vi", "zh")
MEASURE = "confidence in the language"


class LanguageSettings(StepSettings):
    """ISO 639-1 codes. A text is compared with `candidates`; the language wanted needs a share of `min_confidence`.

    The first `characters` of a text decide.
    """

    kind: Literal["language"] = "language"
    languages: Listing[str] = Field(default=("en",), min_length=1)
    candidates: Listing[str] = Field(default=COMMON, min_length=2)
    min_confidence: float = Field(default=0.65, ge=0, le=1)
    characters: int = Field(default=1000, ge=20)

    def conflicts(self) -> Iterator[Problem]:
        known = known_codes()
        for name, codes in (("languages", self.languages), ("candidates", self.candidates)):
            for code in codes:
                if known and code not in known:
                    yield Problem((name,), f'"{code}"; must be an ISO 639-1 code{did_you_mean(code, list(known))}')


class Language(RuleStep):
    """Removes other languages, and writes the language found into the field `language`."""

    Settings = LanguageSettings
    about = "the languages that are wanted"
    source = "lingua 2"
    memory = 400_000_000

    def __init__(self, settings: LanguageSettings, context: StepContext):
        super().__init__(settings, context)
        with require("the step language", "lingua", "data"):
            from lingua import IsoCode639_1, LanguageDetectorBuilder
        names = sorted({*settings.languages, *settings.candidates})
        codes = [IsoCode639_1.from_str(name) for name in names]
        # The models of 3-grams alone: an eighth of the memory, and as good on 100 characters and more.
        builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_low_accuracy_mode()
        self.detector = builder.build()
        self.wanted = frozenset(settings.languages)

    def limits(self) -> Sequence[Limit]:
        return (Limit(MEASURE, least=self.settings.min_confidence),)

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        found = self.detector.compute_language_confidence_values(document.text[: self.settings.characters])
        values = [(each.value, each.language.iso_code_639_1.name.lower()) for each in found]
        document.fields["language"] = max(values)[1]
        yield MEASURE, max(value for value, code in values if code in self.wanted)


def known_codes() -> frozenset[str]:
    """The codes that lingua knows; empty where it is not installed."""
    try:
        from lingua import Language as Languages
    except ImportError:
        return frozenset()
    return frozenset(language.iso_code_639_1.name.lower() for language in Languages.all())


STEP = Language
