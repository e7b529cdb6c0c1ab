"""The ngram stage: counts the n-grams of a text and smooths them. Nothing is trained by gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, whole_text_conflicts
from quatrain.runs.stage import Need, StageSpec, deferred

Smoothing = Literal[
    "mle",
    "add_k",
    "jelinek_mercer",
    "absolute_discounting",
    "backoff",
    "katz",
    "kneser_ney",
    "modified_kneser_ney",
]
"""The methods of `quatrain.models.classic._smoothing`; a test compares the two."""


class NgramStage(StageSettings):
    """Counts the n-grams of the text, in the tokens of the recipe's tokenizer, and smooths them.

    `min_counts` are the least counts of n-grams of 1, 2, … tokens that stay; the last number counts for all longer
    ones. `chunk` tokens are sorted in memory at once.
    """

    kind: Literal["ngram"] = "ngram"
    order: int = Field(default=5, ge=1, le=100, description="tokens of the longest n-grams")
    smoothing: Smoothing = "modified_kneser_ney"
    k: float = Field(default=1.0, gt=0, description="what add_k adds to each count")
    discount: float | None = Field(default=None, ge=0, le=1, description="a fixed discount; estimated by default")
    lambdas: Listing[float] = Field(default=(), description="fixed weights of the orders (jelinek_mercer)")
    min_counts: Listing[int] = ()
    chunk: int = Field(default=4_000_000, ge=1, le=2**31)
    arpa: bool = Field(default=False, description="also write model/model.arpa")
    data: DataSettings | None = None
    evaluate: bool = True

    def conflicts(self) -> Iterator[Problem]:
        readers = {
            "k": ("add_k",),
            "discount": ("absolute_discounting", "backoff", "kneser_ney"),
            "lambdas": ("jelinek_mercer",),
        }
        for name, methods in readers.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.smoothing not in methods:
                text = f"{getattr(self, name)}; only smoothing = {' or '.join(methods)} reads it: leave it out"
                yield Problem((name,), text, (("smoothing",),))
        if self.lambdas and len(self.lambdas) != self.order:
            text = f"{len(self.lambdas)} numbers; must be as many as order = {self.order}"
            yield Problem(("lambdas",), text, (("order",),))
        if self.min_counts and (list(self.min_counts) != sorted(self.min_counts) or self.min_counts[0] > 1):
            yield Problem(("min_counts",), "must not fall with the length, and begin with 0 or 1: every token stays")
        if self.smoothing == "add_k" and (self.arpa or any(number > 1 for number in self.min_counts)):
            text = f"{self.smoothing}; asks no shorter context, so that min_counts and arpa cannot be had"
            yield Problem(("smoothing",), text, (("min_counts",), ("arpa",)))


def needs(settings: NgramStage, recipe: RecipeSettings) -> set[Need]:
    """A text and a tokenizer."""
    return {"data", "tokenizer"}


SPEC = StageSpec(
    NgramStage,
    run=deferred("quatrain.runs.stages._ngram:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._ngram:prepare"),
    conflicts=whole_text_conflicts,
    teaches=lambda settings: "text",
)
