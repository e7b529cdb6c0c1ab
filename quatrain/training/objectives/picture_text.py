"""Conversations about pictures: a decoder learns the assistant's turns (LLaVA, Liu et al. 2023, arXiv 2304.08485)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quatrain.core.errors import InputError
from quatrain.data.augmentation import augmented
from quatrain.data.batches import TokenBatch, TokenExample, pad
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.pictures import Picture
from quatrain.training.objectives.base import Causal, Seeds, generators
from quatrain.training.objectives.images import PreparedPictures


@dataclass(frozen=True)
class PictureChat:
    """A conversation about a picture, whose image tokens are in `tokens`; without a picture it has none."""

    tokens: TokenExample
    picture: Picture | None = None

    def __len__(self) -> int:
        """Batches are counted in conversations."""
        return 1


def widened(example: TokenExample, token: int, count: int) -> TokenExample:
    """An example whose image tokens `token` are `count` each."""
    ids: list[int] = []
    mask: list[bool] = []
    for each, learn in zip(example.ids, example.mask, strict=True):
        repeat = count if each == token else 1
        ids += [each] * repeat
        mask += [bool(learn) and each != token] * repeat
    return TokenExample(ids, mask)


class PictureText(Causal):
    """Next-token prediction of the assistant's turns. `augment` names augmentations of the pictures, whose draws follow
    from the seeds that `collate` gets.
    """

    def __init__(self, processor: ImageProcessor, pad_id: int = 0, *, augment: Sequence[str] = ()):
        super().__init__(pad_id)
        self.prepared, self.augment = PreparedPictures(processor), tuple(augment)
        self.draws = True

    def collate(  # type: ignore[override]
        self, examples: Sequence[PictureChat], seed: Seeds | None = None
    ) -> TokenBatch:
        """Ids (B, T) with their labels, and the pictures (N, 3, H, W) of the rows that have one."""
        batch = pad([each.tokens for each in examples], self.pad_id, multiple=self.multiple)
        seen = [(row, each.picture) for row, each in enumerate(examples) if each.picture is not None]
        if not seen:
            return batch
        pixels = [self.prepared.pixels(picture) for _, picture in seen]
        if seed is not None and self.augment:
            draws = generators(seed, len(examples))
            pixels = [augmented(each, self.augment, draws[row]) for each, (row, _) in zip(pixels, seen, strict=True)]
        if len({each.shape for each in pixels}) > 1:
            raise InputError("pictures: have several sizes; the processor must resize or crop them to one")
        features = torch.from_numpy(self.prepared.processor.scale(np.stack(pixels)))
        return batch.replace(features=features)
