"""The convolutions between sound features and a transformer's encoder (Whisper: Radford et al. 2022, arXiv 2212.04356).

The encoder behind them is that of any other encoder-decoder: sound is one more way to make a row of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.transformer.positions import timing_table

FRAMES_PER_VECTOR = 2
"""Feature frames for each vector: the second convolution has this stride."""


@dataclass(frozen=True)
class SoundFrontend:
    """The sizes of Whisper's front end: mel bands of its input, and vectors of its longest output."""

    num_mel_bins: int
    max_positions: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the features of the longest sound."""
        return self.num_mel_bins, FRAMES_PER_VECTOR * self.max_positions

    @property
    def num_vectors(self) -> int:
        """The vectors of the longest sound."""
        return self.max_positions

    def build(self, config: Any) -> nn.Module:
        """The module: log-mel features (B, num_mel_bins, frames) to vectors (B, ceil(frames / 2), hidden_size)."""
        return SoundConvolutions(self.num_mel_bins, config.hidden_size, self.max_positions)


class SoundConvolutions(nn.Module):
    """Two convolutions of width 3 over time, each followed by GELU, then a table of positions.

    The second convolution halves the number of frames. The table is part of the files and is not trained.
    """

    def __init__(self, num_mel_bins: int, hidden_size: int, max_positions: int):
        super().__init__()
        self.num_mel_bins, self.max_positions = num_mel_bins, max_positions
        self.conv1 = nn.Conv1d(num_mel_bins, hidden_size, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, stride=FRAMES_PER_VECTOR, padding=1)
        self.timing_table = nn.Parameter(torch.empty(max_positions, hidden_size), requires_grad=False)

    def initial(self, name: str, generator: torch.Generator) -> Tensor | None:
        """The first value of a parameter that is not drawn."""
        return timing_table(*self.timing_table.shape) if name == "timing_table" else None

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, num_mel_bins, frames) to vectors (B, ceil(frames / 2), hidden_size).

        Raises InputError for another number of bands, and for more frames than the table has positions for.
        """
        most = FRAMES_PER_VECTOR * self.max_positions
        if features.dim() != 3 or features.shape[1] != self.num_mel_bins or not 0 < features.shape[2] <= most:
            raise InputError(
                f"Sound features: shape {tuple(features.shape)}; must be (batch, {self.num_mel_bins} mel bands, 1 to "
                f"{most:,} frames). `quatrain.models.audio.features` computes them from a waveform."
            )
        x = F.gelu(self.conv1(features.to(self.conv1.weight.dtype)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        return x + self.timing_table[: x.shape[1]].to(x.dtype)
