"""Last layers only: the general ones below stay, those of the task above learn (Lee et al. 2019, arXiv 1911.03090)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

BELOW = ("embed_tokens", "embed_positions", "embed_token_types", "embedding_norm")
"""What comes before the blocks. A tied head stays with the embedding that it is."""


def last_layers(model: Model, count: int) -> list[str]:
    """The names of the weights of the last `count` blocks and of all that comes after them.

    Of an encoder-decoder these are the decoder's. Raises InputError where there are not so many blocks.
    """
    blocks = dict(_blocks(model))
    if count > len(blocks):
        raise InputError(f"This adapter cannot be applied: num_layers: {count}; the model has {len(blocks)} blocks.")
    chosen = [f"{name}." for name in list(blocks)[len(blocks) - count :]]
    before = [f"{name}." for name in blocks] + [f"{name}." for name in BELOW] + ["encoder."]
    return [
        name
        for name, _ in model.named_parameters()
        if name.startswith(tuple(chosen)) or not name.startswith(tuple(before))
    ]


def _blocks(model: Model) -> Iterator[tuple[str, nn.Module]]:
    yield from ((f"layers.{number}", block) for number, block in enumerate(model.layers))
