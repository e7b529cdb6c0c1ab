"""Attention rollout: how much of each input token can reach a position through all layers.

Abnar & Zuidema 2020 (arXiv 2005.00928). A layer passes on half of its input unchanged (the residual connection) and
half by the mean attention of its heads; the products of these matrices follow the paths through several layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.attention import AttentionMaps


def attention_rollout(maps: AttentionMaps, *, residual: float = 0.5) -> Tensor:
    """The rollout (L, T, T) after each layer: row t says how position t is made of the input tokens, and sums to 1.

    `residual` is the share that a layer passes on unchanged. Raises InputError for cross-attention, whose queries and
    keys are different tokens.
    """
    if maps.kind == "cross":
        raise InputError("Rollout needs self-attention: the queries and keys of cross-attention are different tokens.")
    if not 0 <= residual < 1:
        raise InputError(f"residual: {residual}; must be at least 0 and below 1")
    length = maps.weights.shape[-1]
    identity = torch.eye(length, dtype=torch.float64)
    rolled, steps = identity, []
    for layer in maps.weights.double():
        mixed = residual * identity + (1 - residual) * layer.mean(0)
        rolled = (mixed / mixed.sum(-1, keepdim=True)) @ rolled
        steps.append(rolled)
    return torch.stack(steps)
