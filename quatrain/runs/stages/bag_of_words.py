"""The bag-of-words stage: fits a linear classifier on the n-grams of labelled texts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing
from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings, whole_text_conflicts
from quatrain.runs.stage import Lesson, Need, StageSpec, deferred


class BagOfWordsStage(StageSettings):
    """Naive Bayes on counts, or logistic regression on TF-IDF, of the n-grams of the recipe's tokens.

    `weighting`: `counts`; `binary`, whether an n-gram is there; `tf_idf`, scikit-learn's formula; `tf_idf_course`,
    count · log(N / df). `strength` is what naive Bayes adds to each count, or logistic regression's C.
    """

    kind: Literal["bag-of-words"] = "bag-of-words"
    ngrams: int = Field(default=2, ge=1, le=8, description="tokens of the longest n-grams")
    weighting: Literal["counts", "binary", "tf_idf", "tf_idf_course"] = "counts"
    classifier: Literal["naive_bayes", "logistic_regression"] = "naive_bayes"
    strength: float = Field(default=1.0, gt=0, le=1e6)
    labels: Listing[str] = ()
    data: DataSettings | None = None

    objective: Literal["classify"] = "classify"
    source_prefix: Literal[""] = ""
    context: None = None


def needs(settings: BagOfWordsStage, recipe: RecipeSettings) -> set[Need]:
    """Labelled texts and a tokenizer."""
    return {"data", "tokenizer"}


def teaches(settings: BagOfWordsStage) -> Lesson:
    """A task with a head."""
    return "task"


SPEC = StageSpec(
    BagOfWordsStage,
    run=deferred("quatrain.runs.stages._bag_of_words:run"),
    needs=needs,
    produces=("model",),
    prepare=deferred("quatrain.runs.stages._bag_of_words:prepare"),
    conflicts=whole_text_conflicts,
    teaches=teaches,
)
