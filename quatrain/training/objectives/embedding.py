"""Sentence embeddings: near for texts that belong together (contrastive), or as near as a score says.

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

from quatrain.data.batches import TokenBatch
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, call, check_head, labels_tensor
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, refuse, shown


@dataclass(frozen=True)
class EmbeddingExample:
    """Texts that are embedded together: an anchor and what belongs to it, perhaps one that does not; or a scored
    pair.
    """

    texts: list[EncodedText]
    score: float = 0.0
    cut: int = 0

    def __len__(self) -> int:
        """Tokens of all rows that the example becomes."""
        return len(self.texts) * max(map(len, self.texts))


class _Embedding(TextObjective):
    """Rows of several texts an example, embedded at once; all first texts come first, then all second ones."""

    head = "embedding"

    def related(self, texts: Sequence[str], score: float = 0.0) -> EmbeddingExample:
        """An example of these texts."""
        rows = [self.read(text) for text in texts]
        return EmbeddingExample(rows, score, sum(row.cut for row in rows))

    def stacked(self, examples: Sequence[EmbeddingExample], labels: Tensor) -> TokenBatch:
        """The examples' texts as rows (R, T), those that every example has first."""
        most = max(len(example.texts) for example in examples)
        return self.batch([each.texts[n] for n in range(most) for each in examples if n < len(each.texts)], labels)

    def vectors(self, model: Any, batch: TokenBatch) -> Tensor:
        """The embeddings (R, C) of a batch's rows, of length 1, in float32."""
        check_head(model, self.head)
        return F.normalize(call(model, batch)[0].float(), dim=-1)


class Contrastive(_Embedding):
    """Each anchor finds its own text among those of the whole batch.

    A record has `anchor` and `positive`, perhaps `negative`, a text that is near and does not belong to it; each
    negative stands against every anchor. The loss is the cross-entropy of cosines divided by `temperature`,
    `symmetric` the mean of both directions. A text that is the anchor's own a second time is no negative. The
    candidates are those of a micro-batch: accumulation does not make them more.
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
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < 1e3:
            refuse([f"temperature: {temperature!r}; must be above 0"], "Contrastive")
        self.temperature, self.symmetric = temperature, symmetric

    def encode(self, record: Any, place: str = "this example") -> list[EmbeddingExample]:
        """One example. Raises InputError for a record without anchor or positive."""
        fields = FieldReader(record, place)
        texts = [fields.text("anchor"), fields.text("positive"), fields.optional_text("negative")]
        fields.check()
        return [self.related([text for text in texts if text is not None])]

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Anchors, positives and negatives as rows (R, T); labels (B) say which candidate is each anchor's own."""
        related: list[EmbeddingExample] = self.encoded(examples)
        return self.stacked(related, torch.arange(len(related)))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The sum over the anchors, their number, and how many find their own text."""
        vectors, count = self.vectors(model, batch), len(batch.labels)
        scores = vectors[:count] @ vectors[count:].T / self.temperature
        same = _same_rows(batch)[count : 2 * count, count:]
        same = same & ~torch.eye(*same.shape, dtype=torch.bool, device=same.device)
        scores = scores.masked_fill(same, -torch.inf)
        loss = F.cross_entropy(scores, batch.labels, reduction="sum")
        right = (scores.detach().argmax(-1) == batch.labels).sum()
        if self.symmetric:
            twins = _same_rows(batch)[:count, :count] & ~torch.eye(count, dtype=torch.bool, device=scores.device)
            back = scores[:, :count].T.masked_fill(twins, -torch.inf)
            loss = (loss + F.cross_entropy(back, batch.labels, reduction="sum")) / 2
        return loss, count, {"accuracy": right}


class CosineSimilarity(_Embedding):
    """Pairs of texts whose cosine is learned to be their score, for semantic similarity.

    A record has `text`, `text_pair` and `score`; `lowest` and `highest` are the ends of the scores' scale (0 and 5 in
    STS), which become the cosines 0 and 1. The loss is the squared error; its weight the number of pairs.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, lowest: float = 0.0, highest: float = 1.0, max_length: int | None = None
    ):
        super().__init__(tokenizer, max_length=max_length)
        if not lowest < highest:
            refuse([f"lowest, highest: {lowest}, {highest}; the first must be below the second"], "CosineSimilarity")
        self.lowest, self.highest = lowest, highest

    def encode(self, record: Any, place: str = "this example") -> list[EmbeddingExample]:
        """One example. Raises InputError for missing texts, or a score that is not on the scale."""
        fields = FieldReader(record, place)
        texts, score = [fields.text("text"), fields.text("text_pair")], fields.raw("score")
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if score is not None and not (number and self.lowest <= score <= self.highest):
            fields.fault(f"score: {shown(score)}; must be a number from {self.lowest:g} to {self.highest:g}")
        fields.check()
        return [self.related(texts, (float(score) - self.lowest) / (self.highest - self.lowest))]

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """All first texts, then all second ones, as rows (2B, T); labels (B) from 0 to 1."""
        related: list[EmbeddingExample] = self.encoded(examples)
        return self.stacked(related, labels_tensor([each.score for each in related], floating=True))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The sum of squared errors over the pairs, and their number."""
        return (self._cosines(model, batch) - batch.labels).square().sum(), len(batch.labels), {}

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[float]:
        """The cosine of each pair."""
        return self._cosines(model, batch).tolist()

    def _cosines(self, model: Any, batch: TokenBatch) -> Tensor:
        first, second = self.vectors(model, batch).chunk(2)
        return (first * second).sum(-1)


def _same_rows(batch: TokenBatch) -> Tensor:
    """Which rows (R, R) of a batch are one and the same text."""
    ids = batch.input_ids if batch.segments is None else batch.input_ids.masked_fill(batch.segments == 0, -1)
    return (ids[:, None] == ids[None]).all(-1)
