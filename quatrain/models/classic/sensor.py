"""Classifies windows of sensor readings, such as a person's movements by an accelerometer (Ordóñez and Roggen 2016).

Two networks show what context they have. The 1-D CNN looks at `kernel_size` readings at a time and keeps each filter's
strongest answer: it knows which patterns occur, not in which order. The LSTM reads the window from its beginning to its
end and carries what it has seen.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.classic._network import Network, NetworkConfig


class SensorConfig(NetworkConfig):
    """A classifier of windows of `channels` readings."""

    heads: ClassVar[tuple[str, ...]] = ("series_classification",)
    architecture: ClassVar[str] = "encoder"

    model_type: str = "sensor"
    head: str = "series_classification"
    network: Literal["cnn", "lstm"] = "cnn"
    channels: int = Field(default=3, ge=1, le=10_000)
    hidden_size: int = Field(default=64, ge=1, le=100_000)
    kernel_size: int = Field(default=9, ge=1, le=10_000)

    @property
    def receptive_field(self) -> int | None:
        """Readings that one filter of the CNN sees; None for an LSTM, which sees all before."""
        return 1 + self.num_hidden_layers * (self.kernel_size - 1) if self.network == "cnn" else None


class Convolutions(nn.Module):
    """Layers of filters over neighbouring readings; the maximum of each over the window."""

    def __init__(self, config: SensorConfig):
        super().__init__()
        sizes = [config.channels] + [config.hidden_size] * config.num_hidden_layers
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(nn.Conv1d(*pair, config.kernel_size, padding="same") for pair in pairs)

    def forward(self, series: Tensor) -> Tensor:
        """series (B, T, C) to features (B, H)."""
        x = series.transpose(1, 2)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.amax(-1)


class Recurrence(nn.Module):
    """LSTM layers; their last state."""

    def __init__(self, config: SensorConfig):
        super().__init__()
        self.layers = nn.LSTM(config.channels, config.hidden_size, config.num_hidden_layers, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        """series (B, T, C) to features (B, H)."""
        features: Tensor = self.layers(series)[1][0][-1]
        return features


NETWORKS: dict[str, type[nn.Module]] = {"cnn": Convolutions, "lstm": Recurrence}


class SensorNetwork(Network):
    """Classifies windows (B, T, C) of readings, which it scales by the mean and deviation of the training data."""

    Config: ClassVar[Any] = SensorConfig

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: SensorConfig):
        super().__init__(config)
        self.features = NETWORKS[config.network](config)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("deviation", torch.ones(config.channels))
        self.add_head(config.hidden_size)

    def fit_scale(self, series: Tensor) -> None:
        """Takes mean and deviation of each channel from windows (N, T, C)."""
        flat = series.reshape(-1, series.shape[-1])
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(flat.std(0).clamp(min=1e-6))

    def forward(self, series: Tensor, labels: Any = None, **inputs: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Logits (B, L) of windows (B, T, C), and with labels (B,) the loss (B,)."""
        if series.dim() != 3 or series.shape[2] != self.config.channels:
            expected = f"(windows, readings, {self.config.channels})"
            raise InputError(f"series: has the shape {tuple(series.shape)}; this model reads {expected}.")
        if self.score is None:
            raise ValueError("a sensor network has a score layer")
        scaled = ((series - self.mean) / self.deviation).to(self.score.weight.dtype)
        features = F.dropout(self.features(scaled), self.config.dropout, self.training)
        logits = self.score(features)
        return logits, None if labels is None else F.cross_entropy(logits.float(), labels, reduction="none")

    @torch.no_grad()
    def classify(self, series: Tensor) -> list[str]:
        """The label of each window (B, T, C)."""
        labels = self.config.labels
        return [labels[int(row.argmax())] for row in self.eval()(series)[0]]


MODEL = SensorNetwork
