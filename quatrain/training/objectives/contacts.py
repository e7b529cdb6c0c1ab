"""Which residues of a protein touch: a binary label for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, Batch
from quatrain.data.proteins import SEPARATION, Family
from quatrain.training.objectives.base import Loss


class ContactPrediction:
    """Alignments of equal size with their contacts; pairs near each other along the sequence have no label."""

    def collate(self, examples: Sequence[Family]) -> Batch:
        """Residues (B, S, L) and labels (B, L, L). Raises InputError for alignments that differ in size."""
        shapes = {example.alignment.shape for example in examples}
        if len(shapes) != 1:
            raise InputError(f"alignments: have {len(shapes)} shapes; all must have as many sequences and residues.")
        msa = torch.from_numpy(np.stack([example.alignment for example in examples]))
        labels = torch.from_numpy(np.stack([example.contacts for example in examples])).long()
        places = torch.arange(labels.shape[-1])
        near = (places - places[:, None]).abs() < SEPARATION
        return Batch({"msa_ids": msa}, labels.masked_fill(near, IGNORE_INDEX))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy in nats, summed over the labelled pairs; the weight is their number."""
        logits, loss = model(**batch.inputs, labels=batch.labels)
        right = ((logits.detach() > 0) == (batch.labels == 1))[batch.labels != IGNORE_INDEX].sum()
        return loss.sum(), batch.num_labels, {"accuracy": right}

    def references(self, examples: Sequence[Family]) -> list[np.ndarray]:
        """The contact maps (L, L)."""
        return [example.contacts for example in examples]

    @torch.no_grad()
    def predict(self, model: Any, batch: Batch) -> list[np.ndarray]:
        """The score (L, L) of each pair."""
        return list(model(**batch.inputs)[0].cpu().numpy())

    def predictions(self, examples: Sequence[Any], outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs themselves."""
        return list(outputs)
