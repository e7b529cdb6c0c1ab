"""Classes of pictures: a vision transformer learns the label of each (Dosovitskiy et al. 2020, arXiv 2010.11929).

With a teacher, the distillation token learns the class that the teacher names (DeiT, Touvron et al. 2020, arXiv
2012.12877: hard distillation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.augmentation import augmented
from quatrain.data.batches import Batch
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.pictures import Picture
from quatrain.training.objectives.base import Loss, Seeds, check_head, correct, generators

CACHE_BYTES = 500_000_000
"""Prepared pictures that are kept in memory."""


@dataclass(frozen=True)
class PictureBatch(Batch):
    """Pictures: `features` (B, 3, H, W) and labels (B)."""

    unit: ClassVar[str] = "pictures"


class PreparedPictures:
    """Reads pictures resized and cropped; as many as fit into `CACHE_BYTES` are kept."""

    def __init__(self, processor: ImageProcessor):
        self.processor = processor
        self.kept: dict[int, tuple[Picture, np.ndarray]] = {}
        self.bytes = 0

    def pixels(self, picture: Picture) -> np.ndarray:
        """The pixels (H, W, 3) of a picture, in bytes. Raises InputError with its place for one that is broken."""
        if id(picture) in self.kept:
            return self.kept[id(picture)][1]
        pixels = self.processor.shape(picture.source)
        if self.bytes + pixels.nbytes <= CACHE_BYTES:
            self.kept[id(picture)] = picture, pixels  # The picture is kept too, so that no other gets its id.
            self.bytes += pixels.nbytes
        return pixels


class ImageClassification:
    """Pictures with one label each; `labels` are the model's label names, in its order.

    `augment` names augmentations, whose draws follow from the seeds that `collate` gets; `plain()` is the objective
    for evaluation, which sees every picture as it is. `teacher` gives the class of features (B, …) as (B).
    """

    problem_type = "single_label"

    def __init__(
        self, processor: ImageProcessor, labels: Sequence[str], *, augment: Sequence[str] = (), teacher: Any = None
    ):
        self.prepared, self.labels, self.teacher = PreparedPictures(processor), tuple(labels), teacher
        self.augment = tuple(augment)
        self.draws = bool(augment)
        self.heads = ("distilled_classification",) + (() if teacher is not None else ("image_classification",))

    def plain(self) -> ImageClassification:
        """The same objective without augmentation and teacher; it shares the prepared pictures."""
        other = ImageClassification(self.prepared.processor, self.labels)
        other.prepared = self.prepared
        return other

    def label_of(self, picture: Picture) -> int:
        """The index of a picture's label. Raises InputError for one that the model does not have."""
        if picture.label not in self.labels:
            raise InputError(f"{picture.place or 'a picture'}: the class {picture.label} is none of the model's")
        return self.labels.index(picture.label)

    def collate(self, examples: Sequence[Picture], seed: Seeds | None = None) -> PictureBatch:
        """Pictures (B, 3, H, W) with labels (B); augmented if `seed` is given."""
        pixels = [self.prepared.pixels(picture) for picture in examples]
        if seed is not None and self.augment:
            draws = generators(seed, len(examples))
            pixels = [augmented(each, self.augment, draw) for each, draw in zip(pixels, draws, strict=True)]
        if len({each.shape for each in pixels}) > 1:
            raise InputError("pictures: have several sizes; the processor must resize or crop them to one")
        features = torch.from_numpy(self.prepared.processor.scale(np.stack(pixels)))
        return PictureBatch({"features": features}, torch.tensor([self.label_of(picture) for picture in examples]))

    def loss(self, model: Any, batch: PictureBatch) -> Loss:
        """Cross-entropy in nats summed over the pictures, their number, and the number of right ones."""
        config = check_head(model, *self.heads, labels=self.labels)
        labels = batch.labels
        if config.head == "distilled_classification":
            second = labels if self.teacher is None else self.teacher(batch.inputs["features"])
            labels = torch.stack((labels, second), dim=1)
        logits, loss = model(labels=labels, **batch.inputs)
        return loss.sum(), len(batch.labels), {"accuracy": correct(logits, batch.labels)}

    def references(self, examples: Sequence[Picture]) -> list[int]:
        """The index of each picture's label."""
        return [self.label_of(picture) for picture in examples]

    def predictions(self, examples: Sequence[Picture], outputs: Sequence[int]) -> list[int]:
        """The outputs of `predict`, as `references` has them."""
        return list(outputs)

    @torch.no_grad()
    def predict(self, model: Any, batch: PictureBatch) -> list[int]:
        """The index of the likeliest label of each picture."""
        logits: Tensor = model(**batch.inputs)[0]
        return logits.argmax(-1).tolist()
