"""Sentence embeddings: texts that mean the same, or pairs with the score of their similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.data.records import Row
from quatrain.tasks.records import RecordTask, overlap, text_pair
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import Contrastive, CosineSimilarity
from quatrain.training.settings import TaskSettings


class Similarity(RecordTask):
    """Pairs of texts: `pair` data means the same (contrastive), `labelled` data has a score."""

    name = "embed"
    format = None
    head = "embedding"
    related = True
    baseline_name = "the share of words in common"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> Contrastive | CosineSimilarity:
        if format == "pair":
            return Contrastive(tokenizer, temperature=settings.temperature, max_length=limit)
        return CosineSimilarity(tokenizer, max_length=limit)

    def question(self, example: Row) -> str:
        return str(example.value["anchor"]) if "anchor" in example.value else text_pair(example)

    def reference(self, example: Row) -> str:
        return str(example.value["positive"] if "anchor" in example.value else example.value["label"])

    def chance(self, batches: int, count: int) -> dict[str, float]:
        """Contrastive data: the mean chance to hit a text's partner among those of its batch."""
        return {"accuracy": batches / count} if isinstance(self.objective, Contrastive) else {}

    def parse(self, completion: str) -> Any:
        return float(completion)

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The overlap of the words of each pair; for contrastive data no baseline but chance is computed."""
        pairs = [(example.value.get("text", ""), example.value.get("text_pair") or "") for example in examples]
        return [str(overlap(one, other)) for one, other in pairs]
