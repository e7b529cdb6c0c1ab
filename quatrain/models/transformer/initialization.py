"""Fresh weights, as short runs like them best (K. Jordan et al., modded-nanogpt, 2024)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.norms import RMSNorm


def initialize(model: nn.Module, config: ModelConfig, seed: int = 0, *, only: Collection[str] | None = None) -> None:
    """Draws every parameter of a model, or those named in `only`, the same ones for the same seed.

    Projections that read the residual stream are uniform within 1 / sqrt(inputs), those that write to it start at
    zero, so that each block begins as the identity. A vocabulary head of its own starts at zero and its embedding at
    0.5; an embedding that is tied to the head at 0.05; tables of positions and types, and labels, at
    initializer_range. Norms start as the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {
        name + "." if name else "": module
        for name, module in model.named_modules()
        if isinstance(module, RMSNorm | nn.LayerNorm)
    }
    with torch.no_grad():
        # The embedding first: the order of the draws is part of what a seed means.
        for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0] != "embed_tokens.weight"):
            if only is not None and name not in only:
                continue
            owner, leaf = name[: name.rfind(".") + 1], name.rpartition(".")[2]
            if owner in norms:
                offset = getattr(norms[owner], "offset", 0.0)
                parameter.fill_(0.0 if leaf == "bias" else 1.0 - offset)
            elif leaf == "bias" or name.endswith(("o_proj.weight", "down_proj.weight")) or name == "lm_head.weight":
                parameter.zero_()
            elif (deviation := _deviation(name, config)) is not None:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 1.0, generator=generator) * deviation)
            else:
                bound = parameter.shape[1] ** -0.5
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _deviation(name: str, config: ModelConfig) -> float | None:
    """The standard deviation of a table's rows or a label layer's weights; None for a projection."""
    if name == "embed_tokens.weight":
        return 0.05 if config.tie_word_embeddings else 0.5
    tables = ("embed_positions.weight", "embed_token_types.weight", "relative_bias.weight", "score.weight")
    return config.initializer_range if name.endswith(tables) else None
