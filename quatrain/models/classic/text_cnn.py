"""The text CNN (Kim 2014, arXiv 1408.5882): filters over a few neighbouring words, the maximum of each over the text.

Its word vectors start at random, or come from a file and stay `static` or are `tuned`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.settings import Listing
from quatrain.models.classic._network import Network, NetworkConfig, lengths_of


class TextCNNConfig(NetworkConfig):
    """A text CNN: `num_filters` filters over each number of neighbouring words in `kernel_sizes`.

    `vectors`: the embedding starts at random, or from a file of vectors that stay as they are or learn.
    """

    heads: ClassVar[tuple[str, ...]] = ("sequence_classification",)
    architecture: ClassVar[str] = "encoder"

    model_type: str = "text-cnn"
    head: str = "sequence_classification"
    kernel_sizes: Listing[int] = (3, 4, 5)
    num_filters: int = Field(default=100, ge=1, le=1_000_000)
    vectors: Literal["random", "static", "tuned"] = "random"


class TextCNN(Network):
    """Classifies a text by the strongest answers of its filters."""

    Config: ClassVar[Any] = TextCNNConfig
    embedding_std: ClassVar[float] = 0.06

    def __init__(self, config: TextCNNConfig):
        super().__init__(config)
        sizes, filters = config.kernel_sizes, config.num_filters
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_width)
        if config.vectors == "static":
            self.embed_tokens.weight.requires_grad_(False)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_width, filters, size, padding=size - 1) for size in sizes
        )
        self.add_head(filters * len(sizes))

    def hidden_states(self, input_ids: Tensor, *, segments: Tensor | None = None, **inputs: Any) -> Tensor:
        """The answers (B, F) of all filters, each at its strongest place; there is one state for a text."""
        embedded = self.embed(input_ids)
        if segments is not None:
            embedded = embedded * (segments != 0)[..., None]
        embedded = embedded.transpose(1, 2)
        lengths = lengths_of(input_ids, segments)[:, None]
        parts = []
        for layer, size in zip(self.convolutions, self.config.kernel_sizes, strict=True):
            found = F.relu(layer(embedded))
            # Places that see padding alone do not count: a bias may be the strongest answer there.
            places = torch.arange(found.shape[-1], device=found.device)
            parts.append(found.masked_fill((places >= lengths + size - 1)[:, None], 0.0).amax(-1))
        return F.dropout(torch.cat(parts, dim=-1), self.config.dropout, self.training)

    def pool(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        return hidden


MODEL = TextCNN
