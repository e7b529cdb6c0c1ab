"""Language modelling in both directions: a word from all words before it, and from all words behind it (ELMo: Peters et
al. 2018, arXiv 1802.05365).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.data.batches import TokenBatch, TokenExample, stack, text_segments
from quatrain.training.objectives.base import Loss, check_head


class Bidirectional:
    """Texts of tokens for a model that predicts their words in both directions (`direction_losses`).

    The loss is the mean over both; a metric gives that of each.
    """

    likelihood = "loss"

    def __init__(self, pad_id: int = 0, *, multiple: int = 8):
        self.pad_id, self.multiple = pad_id, multiple

    def collate(self, examples: Sequence[TokenExample] | TokenBatch) -> TokenBatch:
        """Pad examples to a batch. A `TokenBatch`, as window streams yield, is returned unchanged."""
        if isinstance(examples, TokenBatch):
            return examples
        rows = [example.ids for example in examples]
        input_ids = stack(rows, self.pad_id, multiple=self.multiple)
        return TokenBatch.of(input_ids, input_ids, segments=text_segments(rows, input_ids.shape[1]))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the predictions of both directions; the weight is their number."""
        check_head(model, "bidirectional")
        network = getattr(model, "module", model)
        ahead, back, count = network.direction_losses(batch.input_ids, batch.segments)
        each = {"next_word_loss": 2 * ahead.detach(), "previous_word_loss": 2 * back.detach()}
        return ahead + back, 2 * count, each
