"""Sentence embeddings, learned from texts that belong together (contrastive) or from pairs with a similarity score.

In-batch negatives: Henderson et al. 2017 (arXiv 1705.00652), van den Oord et al. 2018 (arXiv 1807.03748), Gao et al.
2021 (arXiv 2104.08821); cosine regression: Reimers & Gurevych 2019 (arXiv 1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.wording import format_value
from quatrain.data.batches import TokenBatch
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, check_head, check_number, correct, forward, labels_tensor
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, refuse


@dataclass(frozen=True)
class EmbeddingExample:
    """The texts of one example: an anchor, a positive and perhaps a negative; or a pair with a score."""

    texts: list[EncodedText]
    score: float = 0.0
    cut: int = 0

    def __len__(self) -> int:
        """Tokens of all rows of the example, padding included."""
        return len(self.texts) * max(map(len, self.texts))


class _Embedding(TextObjective):
    """Examples of several texts, embedded as one batch: all first texts, then all second texts, and so on."""

    head = "embedding"

    def related(self, texts: Sequence[str], score: float = 0.0) -> EmbeddingExample:
        """Encode the texts of one example."""
        rows = [self.read(text) for text in texts]
        return EmbeddingExample(rows, score, sum(row.cut for row in rows))

    def stacked(self, examples: Sequence[EmbeddingExample], labels: Tensor) -> TokenBatch:
        """The texts of the examples as rows (R, T), grouped by their position in the example."""
        most = max(len(example.texts) for example in examples)
        return self.batch([each.texts[n] for n in range(most) for each in examples if n < len(each.texts)], labels)

    def vectors(self, model: Any, batch: TokenBatch) -> Tensor:
        """The embeddings (R, C) of a batch's rows, normalized to length 1, in float32."""
        check_head(model, self.head)
        return F.normalize(forward(model, batch)[0].float(), dim=-1)


class Contrastive(_Embedding):
    """Each anchor must find its positive among all positives and negatives of the batch.

    A record has `anchor`, `positive` and optionally `negative`, a hard negative; every negative is a candidate for
    every anchor. The loss is the cross-entropy of cosines divided by `temperature`; `symmetric` takes the mean of both
    directions. Duplicates of an anchor's positive are not used as negatives. Candidates come from the same micro-batch,
    so accumulation does not add negatives.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        temperature: float = 0.05,
        symmetric: bool = False,
        max_length: int | None = None,
    ):
        super().__init__(tokenizer, max_length=max_length)
        refuse(check_number("temperature", temperature, 0, 1e3, above=True), "Contrastive")
        self.temperature, self.symmetric = temperature, symmetric

    def encode(self, record: Any, place: str = "this example") -> list[EmbeddingExample]:
        """One example. Raises InputError for a record without anchor or positive."""
        fields = FieldReader(record, place)
        texts = [fields.text("anchor"), fields.text("positive"), fields.optional_text("negative")]
        fields.check()
        return [self.related([text for text in texts if text is not None])]

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Anchors, positives and negatives as rows (R, T); labels (B) are the index of each anchor's positive."""
        related: list[EmbeddingExample] = self.encoded(examples)
        return self.stacked(related, torch.arange(len(related)))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The loss summed over the anchors, their number, and the number of anchors that find their positive."""
        vectors, count = self.vectors(model, batch), len(batch.labels)
        scores = vectors[:count] @ vectors[count:].T / self.temperature
        same = _same_rows(batch)[count : 2 * count, count:]
        same = same & ~torch.eye(*same.shape, dtype=torch.bool, device=same.device)
        scores = scores.masked_fill(same, -torch.inf)
        loss = F.cross_entropy(scores, batch.labels, reduction="sum")
        accuracy = correct(scores, batch.labels)
        if self.symmetric:
            twins = _same_rows(batch)[:count, :count] & ~torch.eye(count, dtype=torch.bool, device=scores.device)
            back = scores[:, :count].T.masked_fill(twins, -torch.inf)
            loss = (loss + F.cross_entropy(back, batch.labels, reduction="sum")) / 2
        return loss, count, {"accuracy": accuracy}


class CosineSimilarity(_Embedding):
    """Pairs of texts whose cosine should equal their similarity score.

    A record has `text`, `text_pair` and `score`. The score's range from `lowest` to `highest` (0 to 5 in STS) is mapped
    to cosines from 0 to 1. The loss is the squared error; its weight is the number of pairs.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, lowest: float = 0.0, highest: float = 1.0, max_length: int | None = None
    ):
        super().__init__(tokenizer, max_length=max_length)
        if not lowest < highest:
            refuse([f"lowest, highest: {lowest}, {highest}; lowest must be below highest"], "CosineSimilarity")
        self.lowest, self.highest = lowest, highest

    def encode(self, record: Any, place: str = "this example") -> list[EmbeddingExample]:
        """One example. Raises InputError for missing texts, or a score out of range."""
        fields = FieldReader(record, place)
        texts, score = [fields.text("text"), fields.text("text_pair")], fields.raw("score")
        if score is not None and check_number("score", score, self.lowest, self.highest):
            fields.fault(f"score: {format_value(score)}; must be a number from {self.lowest:g} to {self.highest:g}")
        fields.check()
        return [self.related(texts, (float(score) - self.lowest) / (self.highest - self.lowest))]

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """All first texts, then all second texts, as rows (2B, T); labels (B) from 0 to 1."""
        related: list[EmbeddingExample] = self.encoded(examples)
        return self.stacked(related, labels_tensor([each.score for each in related], floating=True))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The squared error summed over the pairs, and their number."""
        return (self._cosines(model, batch) - batch.labels).square().sum(), len(batch.labels), {}

    def describe_target(self, example: EmbeddingExample) -> str:
        return f"score: {example.score:.4g}"

    def references(self, examples: Sequence[EmbeddingExample]) -> list[float]:
        return [example.score for example in examples]

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[float]:
        """The cosine of each pair."""
        return self._cosines(model, batch).tolist()

    def _cosines(self, model: Any, batch: TokenBatch) -> Tensor:
        first, second = self.vectors(model, batch).chunk(2)
        return (first * second).sum(-1)


def _same_rows(batch: TokenBatch) -> Tensor:
    """A mask (R, R) of the rows of a batch that are the same text."""
    ids = batch.input_ids if batch.segments is None else batch.input_ids.masked_fill(batch.segments == 0, -1)
    return (ids[:, None] == ids[None]).all(-1)
