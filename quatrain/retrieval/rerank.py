"""A cross-encoder reads question and passage together and ranks the first hits anew.

Nogueira & Cho 2019 (arXiv 1901.04085). Models of one number (MS MARCO's), of two classes, or with a class such as
"entailment" or "relevant".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.core.errors import InputError

POSITIVE = ("relevant", "entailment", "positive", "yes", "true", "1", "label_1")
"""Names of the class that means relevance, in the order in which they are looked for."""


class Reranker:
    """Scores of passages for a question, by a model that classifies pairs of texts."""

    def __init__(self, name: str):
        """Raises InputError for a model that is missing or does not classify texts."""
        from quatrain.tasks.pipelines import pipeline

        self.name = name
        self._pipeline: Any = pipeline("text-classification", name)
        labels = list(self._pipeline.config.labels)
        lower = [label.lower() for label in labels]
        self.label = labels[0] if len(labels) == 1 else next(
            (labels[lower.index(each)] for each in POSITIVE if each in lower), None
        )  # fmt: skip
        if self.label is None:
            raise InputError(
                f"rerank: {name!r} has the classes {', '.join(labels)}; one must mean relevance: {', '.join(POSITIVE)}"
            )

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """A logit of each passage's relevance."""
        pairs = [{"text": question, "text_pair": passage} for passage in passages]
        options = {"function_to_apply": "none", "top_k": None}
        found = self._pipeline(pairs, **options) if pairs else []
        return [next(each["score"] for each in classes if each["label"] == self.label) for classes in found]

    def ranked(self, question: str, numbers: Sequence[int], passages: Sequence[str]) -> list[tuple[int, float]]:
        """The numbers with their scores, the best first."""
        scored = zip(numbers, self.scores(question, passages), strict=True)
        return sorted(scored, key=lambda each: -each[1])
