"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-rotation layout of Hugging Face's Llama."""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.models.config import ModelConfig


def rotary_tables(config: ModelConfig, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines (max_position_embeddings, head_dim) in float32 for every position and channel."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    inverse_frequency = 1.0 / (config.rope_theta**half)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32, device=device)
    angles = torch.outer(positions, inverse_frequency)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of channels (i, i + D/2) of x (B, H, T, D) by its position's angle; cos, sin broadcast to x."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
