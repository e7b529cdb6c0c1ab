"""How similar sentences are: the cosines of their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import functional as F

from quatrain.models.io.sentence_transformers import text_tokens
from quatrain.tasks.pipelines.base import Field, Prediction
from quatrain.tasks.pipelines.sentence_embeddings import EmbeddingOptions, SentenceEmbeddings


class SentenceSimilarity(SentenceEmbeddings):
    """The similarity, from -1 to 1, of a `source_sentence` to each of the `sentences`, as a list of numbers."""

    task = "sentence-similarity"
    default_for = ()
    fields = (Field("source_sentence", part="text"), Field("sentences", kind="texts", part="others"))

    def __call__(self, inputs: Any, sentences: Any = None, *, batch_size: int | None = None, **options: Any) -> Any:
        """The similarities of a sentence to `sentences`, or of inputs {"source_sentence", "sentences"}."""
        if sentences is not None:
            inputs = {"source_sentence": inputs, "sentences": sentences}
        return super().__call__(inputs, batch_size=batch_size, **options)

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: EmbeddingOptions) -> list[Prediction]:
        predictions = []
        for each in inputs:
            texts = self.prompted([each["source_sentence"], *each["sentences"]], options)
            vectors = F.normalize(self.vectors(texts, options), dim=-1)
            cut = sum(lost for _, lost in text_tokens(self.model, self.tokenizer, texts))
            predictions.append(Prediction((vectors[1:] @ vectors[0]).tolist(), cut))
        return predictions

    def record(self, value: Any) -> dict[str, Any]:
        return {"similarities": value}

    def line(self, text: str, value: Any) -> str:
        return "\t".join(f"{number:.4f}" for number in value)
