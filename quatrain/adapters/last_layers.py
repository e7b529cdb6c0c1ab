"""Trains the last layers only; the general layers below stay frozen (Lee et al. 2019, arXiv 1911.03090)."""

from __future__ import annotations

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

BELOW = ("embed_tokens", "embed_positions", "embed_token_types", "embedding_norm")
"""Modules before the blocks, which stay frozen. A tied head stays frozen with its embedding."""


def last_layers(model: Model, count: int) -> list[str]:
    """The names of the weights of the last `count` blocks and of all modules after them; of the decoder, if there is an
    encoder. Raises InputError if the model has fewer blocks.
    """
    blocks = len(model.layers)
    if count > blocks:
        raise InputError(f"This adapter cannot be applied: num_layers: {count}; the model has {blocks} blocks.")
    frozen = tuple(
        f"{name}." for name in (*BELOW, "encoder", *(f"layers.{number}" for number in range(blocks - count)))
    )
    return [name for name, _ in model.named_parameters() if not name.startswith(frozen)]
