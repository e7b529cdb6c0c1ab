"""Keeps what looks like the user's good examples, by a classifier that is trained on them in a minute.

Features are the words and pairs of words of a text, hashed, and the classifier is a logistic regression, as GPT-3
selected its crawl (Brown et al. 2020, arXiv 2005.14165, appendix A). `rule = "pareto"` is GPT-3's: a text of score p is
kept if a draw from a Pareto distribution of shape 9 exceeds 1 - p, so that some unusual texts stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.settings import Settings
from quatrain.data.curation.arrays import Array, named_array, write_array
from quatrain.data.curation.document import Removal, SourceDocument, content_key
from quatrain.data.curation.step import Limit, RuleStep, StepContext, StepSettings
from quatrain.data.documents import read_documents

FEATURES = 2**18
SCORE = "quality score"
PARETO_SHAPE = 9


class Examples(Settings):
    """A source of examples: `column` holds the text of records."""

    path: str = Field(min_length=1)
    column: str = "text"


class QualityClassifierSettings(StepSettings):
    """`good` and `bad` are examples, `most` of each are read. Texts that score below `min_score` are removed."""

    kind: Literal["quality_classifier"] = "quality_classifier"
    good: Examples
    bad: Examples
    most: int = Field(default=20_000, ge=10)
    rule: Literal["threshold", "pareto"] = "threshold"
    min_score: float = Field(default=0.5, ge=0, le=1)


class QualityClassifier(RuleStep):
    """Scores each text from 0 (bad) to 1 (good)."""

    Settings = QualityClassifierSettings
    about = "texts like the good examples"
    source = "GPT-3, arXiv 2005.14165, A"
    memory = 50_000_000

    @classmethod
    def prepare(cls, settings: QualityClassifierSettings, context: StepContext) -> None:
        """Trains the classifier; a tenth of the examples is held out, and its accuracy written."""
        from sklearn.linear_model import LogisticRegression

        texts: list[str] = []
        labels: list[int] = []
        for label, examples in ((1, settings.good), (0, settings.bad)):
            found = list(islice(read_documents(examples.path, column=examples.column), settings.most))
            if len(found) < 2:
                raise InputError(f"quality_classifier: {examples.path} has {len(found)} examples; give at least 2")
            texts += found
            labels += [label] * len(found)
        order = np.argsort([content_key(text) for text in texts], kind="stable")
        features, targets = vectorizer().transform([texts[place] for place in order]), np.array(labels)[order]
        held_out = max(1, len(order) // 10)
        model = LogisticRegression(max_iter=200, C=10.0)
        accuracy = None
        if len(set(targets[held_out:])) == 2:
            model.fit(features[held_out:], targets[held_out:])
            accuracy = float(model.score(features[:held_out], targets[:held_out]))
        model.fit(features, targets)
        write_array(context.folder, "coefficients", model.coef_[0].astype(np.float32))
        about = {"intercept": float(model.intercept_[0]), "examples": len(texts), "accuracy_held_out": accuracy}
        write_json(context.folder / "classifier.json", about)

    def __init__(self, settings: QualityClassifierSettings, context: StepContext):
        super().__init__(settings, context)
        self._model: tuple[Any, Array, float] | None = None

    def limits(self) -> Sequence[Limit]:
        return (Limit(SCORE, least=self.settings.min_score),)

    def values(self, document: SourceDocument) -> Iterator[tuple[str, float]]:
        yield SCORE, self.score(document.text)

    def apply(self, document: SourceDocument) -> Removal | None:
        if self.settings.rule == "threshold":
            return super().apply(document)
        draw = (content_key(f"{self.context.seed} {document.text}") + 1) / 2**64
        kept = draw ** (-1 / PARETO_SHAPE) - 1 > 1 - self.score(document.text)
        return None if kept else Removal(f"{SCORE} below a Pareto draw")

    def score(self, text: str) -> float:
        """The probability that a text is good."""
        if self._model is None:
            self._model = (vectorizer(), *load(self.context.folder))
        vectorize, weights, intercept = self._model
        row = vectorize.transform([text])
        value = float(row.data @ weights[row.indices]) + intercept
        return float(1 / (1 + np.exp(-np.clip(value, -60, 60))))


def vectorizer() -> Any:
    """Words and pairs of words as hashed features. Raises InputError without scikit-learn."""
    with require("the step quality_classifier", "scikit-learn", "classic"):
        from sklearn.feature_extraction.text import HashingVectorizer
    return HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, norm="l2")


def load(folder: Path) -> tuple[Array, float]:
    """The coefficients and the intercept that `prepare` wrote."""
    weights = named_array(folder, "coefficients")
    return weights, float(json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["intercept"])


STEP = QualityClassifier
