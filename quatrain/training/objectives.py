"""Objectives: what a step learns. `loss` returns the sum and the weight; the trainer divides once, over everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from quatrain.models.stack import Model
from quatrain.text.batches import Batch, TokenExample, pad


class Objective(Protocol):
    """What the trainer asks of an objective."""

    def collate(self, examples: Sequence[Any]) -> Any:
        """The batch of one micro-step; it has `to(device)` and `input_ids`."""
        ...

    def loss(self, model: Model, batch: Any) -> tuple[Tensor, int, dict[str, float | Tensor]]:
        """The sum of the loss, its weight (what it is to be divided by), and metrics summed the same way."""
        ...


class Causal:
    """Next-token prediction on the tokens that are learned: all of a text, or the assistant's part of a chat."""

    def __init__(self, pad_id: int = 0):
        self.pad_id = pad_id

    def collate(self, examples: Sequence[TokenExample] | Batch) -> Batch:
        """Examples become a padded batch; a stream of windows brings its batch ready-made."""
        return examples if isinstance(examples, Batch) else pad(examples, self.pad_id)

    def loss(self, model: Model, batch: Batch) -> tuple[Tensor, int, dict[str, float | Tensor]]:
        """Cross-entropy in nats, summed over the learned tokens; the weight is their number."""
        _, loss = model(batch.input_ids, batch.labels, positions=batch.positions, segments=batch.segments)
        return loss.sum(), batch.num_labels, {}
