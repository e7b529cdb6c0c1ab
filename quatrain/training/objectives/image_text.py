"""Pictures and their captions: each must find the other in the batch (CLIP, Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.data.augmentation import augmented
from quatrain.data.batches import TokenBatch
from quatrain.data.image_text import ImageTextProcessor
from quatrain.data.pictures import Picture
from quatrain.training.objectives.base import Loss, Seeds, check_head, generators
from quatrain.training.objectives.images import PreparedPictures

LARGEST_SCALE = 100.0
"""CLIP's limit of the factor of similarities."""
ROWS = 256
"""Pictures or texts that are embedded at once."""


class ImageText:
    """Pictures with captions. All pictures of which a caption is true belong to it: none is a wrong answer.

    `short` is the share of pictures that come with one of their further captions, which say less of them. `augment`
    names augmentations. Both are drawn from the seeds that `collate` gets. `largest_scale` limits the learned factor
    of the similarities: a small one forces captions apart in more directions, each of a word.
    """

    draws = True

    def __init__(
        self,
        processor: ImageTextProcessor,
        *,
        length: int,
        augment: Sequence[str] = (),
        short: float = 0.0,
        largest_scale: float = LARGEST_SCALE,
    ):
        self.processor, self.length, self.augment, self.short = processor, length, tuple(augment), short
        self.largest_log_scale = math.log(largest_scale)
        self.prepared = PreparedPictures(processor.images)

    def collate(self, examples: Sequence[Picture], seed: Seeds | None = None) -> TokenBatch:
        """Captions (B, T) and pictures (B, 3, H, W), with the labels (B, B): 1 where a caption is true of a picture."""
        pixels = [self.prepared.pixels(picture) for picture in examples]
        said = [picture.caption for picture in examples]
        if seed is not None:
            draws = generators(seed, len(examples))
            said = [_drawn(picture, self.short, draw) for picture, draw in zip(examples, draws, strict=True)]
            pixels = [augmented(each, self.augment, draw) for each, draw in zip(pixels, draws, strict=True)]
        ids, mask = map(torch.from_numpy, self.processor.ids(said, self.length))
        true = [{picture.caption, *picture.captions} for picture in examples]
        labels = torch.tensor([[float(text in texts) for texts in true] for text in said])
        features = torch.from_numpy(self.processor.images.scale(np.stack(pixels)))
        return TokenBatch.of(ids, labels, segments=mask, features=features)

    def features(self, examples: Sequence[Picture]) -> Tensor:
        """The pictures (B, 3, H, W) of examples."""
        pixels = np.stack([self.prepared.pixels(picture) for picture in examples])
        return torch.from_numpy(self.processor.images.scale(pixels))

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The mean of both cross-entropies summed over the pairs, their number, and the texts that find a picture."""
        check_head(model, "contrastive")
        with torch.no_grad():
            scale = getattr(model, "module", model).log_scale
            scale.clamp_(max=self.largest_log_scale)
        logits, loss = model(labels=batch.labels, **batch.inputs)
        best = logits.detach().argmax(1, keepdim=True)
        return loss.sum(), len(batch.labels), {"accuracy": batch.labels.gather(1, best).sum()}


def _drawn(picture: Picture, short: float, draw: np.random.Generator) -> str:
    """The caption of a picture, or in a share `short` one of its further captions."""
    if not picture.captions or draw.random() >= short:
        return picture.caption
    return picture.captions[int(draw.integers(len(picture.captions)))]


@torch.no_grad()
def text_vectors(model: Any, processor: ImageTextProcessor, texts: Sequence[str]) -> Tensor:
    """The vectors (N, P) of texts, of length 1, on the CPU."""
    parts = []
    for start in range(0, len(texts), ROWS):
        ids, mask = processor.ids(texts[start : start + ROWS], model.config.context_length)
        sides = (torch.from_numpy(each).to(model.device) for each in (ids, mask))
        parts.append(model.text_vectors(*sides).float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def image_vectors(model: Any, features: Tensor) -> Tensor:
    """The vectors (N, P) of prepared pictures (N, 3, H, W), of length 1, on the CPU."""
    parts = [model.image_vectors(part.to(model.device)).float().cpu() for part in features.split(ROWS)]
    return torch.cat(parts)
