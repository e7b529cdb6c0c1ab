"""Speech to text: an encoder reads the features of a recording, a decoder writes what is said.

Features are varied while they are learned from: spoken faster or slower, higher or lower, earlier or later, and with
bands of frequency and time blanked, which is SpecAugment (Park et al. 2019, arXiv 1904.08779).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, Batch
from quatrain.training.objectives.base import Loss, Seeds, generators


@dataclass(frozen=True)
class SpeechExample:
    """Features (bands, frames) and the ids of the text, with the end token; `prompt` ids are read, not learned."""

    features: Tensor
    target: tuple[int, ...]
    prompt: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Frames of the features."""
        return int(self.features.shape[1])


class Transcription:
    """Next-token prediction of a text, given the features of its recording.

    The decoder reads the start token, the prompt of an example, and the text. `masked_bands` and `masked_frames` are
    the widths of the largest blanked bands (0: none), `shift` the most frames by which a recording is moved, `pitch`
    the most bands, and `tempo` the largest share by which it is stretched or shortened. They are drawn for each
    example from its seed, and not in evaluation.
    """

    draws: ClassVar[bool] = True
    likelihood: ClassVar[str] = "loss"

    def __init__(
        self, *, masked_bands: int = 0, masked_frames: int = 0, shift: int = 0, pitch: int = 0, tempo: float = 0.0
    ):
        self.masked_bands, self.masked_frames, self.shift = masked_bands, masked_frames, shift
        self.pitch, self.tempo = pitch, tempo

    def collate(self, examples: Sequence[SpeechExample], *, seed: Seeds | None = None) -> Batch:
        """Features (B, bands, frames), and labels (B, T) padded with -100. Raises InputError for shapes that differ."""
        shapes = {tuple(example.features.shape) for example in examples}
        if len(shapes) != 1:
            raise InputError(f"features: have {len(shapes)} shapes; all recordings must have as many bands and frames.")
        rows = [example.features for example in examples]
        if seed is not None:
            drawn = generators(seed, len(examples))
            rows = [self.varied(row, random) for row, random in zip(rows, drawn, strict=True)]
        width = max(len(example.prompt) + len(example.target) for example in examples)
        labels = torch.full((len(examples), width), IGNORE_INDEX)
        read = torch.zeros((len(examples), width), dtype=torch.long)
        for row, example in enumerate(examples):
            ids, skipped = (*example.prompt, *example.target), len(example.prompt)
            labels[row, skipped : len(ids)] = torch.tensor(example.target)
            read[row, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.long)
        return Batch({"features": torch.stack(rows), "decoder_input_ids": read}, labels)

    def varied(self, features: Tensor, random: np.random.Generator) -> Tensor:
        """Features stretched and moved, with a band of frequencies and a stretch of time at their mean."""
        bands, frames = features.shape
        quiet = float(features.min())
        length = round(frames * float(random.uniform(1 - self.tempo, 1 + self.tempo)))
        if length != frames:
            features = F.interpolate(features[None], length, mode="linear")[0, :, :frames]
            features = F.pad(features, (0, frames - features.shape[1]), value=quiet)
        for axis, most in ((1, self.shift), (0, self.pitch)):
            moved = int(random.integers(-most, most + 1))
            features = features.roll(moved, dims=axis)  # A copy, also without a move.
            start, count = (0, moved) if moved >= 0 else (features.shape[axis] + moved, -moved)
            features.narrow(axis, start, count).fill_(quiet)
        mean = float(features.mean())
        for axis, most, size in ((0, self.masked_bands, bands), (1, self.masked_frames, frames)):
            width = int(random.integers(0, min(most, size) + 1))
            start = int(random.integers(0, size - width + 1))
            features.narrow(axis, start, width).fill_(mean)
        return features

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy in nats, summed over the tokens of the texts; the weight is their number."""
        read = batch.inputs["decoder_input_ids"].clone()
        read[:, 0] = getattr(model, "module", model).config.decoder_start_token_id
        hidden = model.hidden_states(features=batch.inputs["features"], decoder_input_ids=read)
        logits = model.lm_logits(hidden)
        known = batch.labels != IGNORE_INDEX
        loss = F.cross_entropy(logits[known].float(), batch.labels[known], reduction="sum")
        right = (logits.detach()[known].argmax(-1) == batch.labels[known]).sum()
        return loss, int(known.sum()), {"accuracy": right}
