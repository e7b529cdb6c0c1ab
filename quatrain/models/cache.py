"""Keys and values of the tokens seen so far, so that decoding reads each token once."""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.models.config import ModelConfig


class KVCache:
    """Preallocated keys and values of every layer, (B, num_key_value_heads, max_length, head_dim) each.

    `length` is the number of slots filled. `segments` (B, max_length), kept once a padded or packed batch
    is written, holds each slot's segment; 0 is padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.max_length = max_length
        self.length = 0
        self.segments: Tensor | None = None

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that one more token of one sequence costs."""
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes T new slots of a layer, returns all filled ones (B, H, length + T, D); `advance` moves the length."""
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def write_segments(self, segments: Tensor | None, count: int) -> Tensor | None:
        """Notes the segments (B, count) of the slots about to be written; returns those of all slots, or None."""
        if segments is None and self.segments is None:
            return None
        if self.segments is None:
            batch_size = self.keys[0].shape[0]
            self.segments = torch.ones(batch_size, self.max_length, dtype=torch.long, device=self.keys[0].device)
        end = self.length + count
        if segments is not None:
            self.segments[:, self.length : end] = segments
        return self.segments[:, :end]

    def advance(self, count: int) -> None:
        """Counts `count` slots as filled, after every layer has written them."""
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Keeps (and may repeat or reorder) rows of the batch: finished sequences leave, beams are copied."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]
        if self.segments is not None:
            self.segments = self.segments[rows]
