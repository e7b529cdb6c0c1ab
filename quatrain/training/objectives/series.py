"""Classes of windows of sensor readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.batches import Batch
from quatrain.data.series import SeriesWindow
from quatrain.training.objectives.base import Loss


class SeriesClassification:
    """Windows of equal length with one of `labels` each."""

    def __init__(self, labels: Sequence[str]):
        self.labels = tuple(labels)
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    def collate(self, examples: Sequence[SeriesWindow]) -> Batch:
        """Readings (B, T, C) and labels (B,). Raises InputError for windows that differ in shape or have new labels."""
        shapes = {example.values.shape for example in examples}
        if len(shapes) != 1:
            raise InputError(f"windows: have {len(shapes)} shapes; all must have as many readings and channels.")
        if unknown := sorted({example.label for example in examples} - set(self.labels)):
            raise InputError(f"labels: {', '.join(unknown[:6])}; the model has {', '.join(self.labels[:6])}.")
        series = torch.from_numpy(np.stack([example.values for example in examples]))
        return Batch({"series": series}, torch.tensor([self._numbers[example.label] for example in examples]))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy in nats, summed over the windows; the weight is their number."""
        logits, loss = model(**batch.inputs, labels=batch.labels)
        right = (logits.detach().argmax(-1) == batch.labels).sum()
        return loss.sum(), batch.num_labels, {"accuracy": right}

    def references(self, examples: Sequence[SeriesWindow]) -> list[int]:
        """The numbers of the windows' labels."""
        return [self._numbers[example.label] for example in examples]

    @torch.no_grad()
    def predict(self, model: Any, batch: Batch) -> list[int]:
        """The number of the likeliest label of each window."""
        predicted: list[int] = model(**batch.inputs)[0].argmax(-1).tolist()
        return predicted

    def predictions(self, examples: Sequence[Any], outputs: Sequence[int]) -> list[int]:
        """The outputs themselves."""
        return list(outputs)
