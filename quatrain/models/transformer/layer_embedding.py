"""A second embedding of each token, another one for every layer, which each layer adds to its output.

Per-layer embeddings of Gemma 3n (Gemma Team 2025, https://ai.google.dev/gemma/docs/gemma-3n) and Gemma 4: their table
is large and only looked up, so that it may stay outside the accelerator.
"""

from __future__ import annotations

from torch import Tensor, nn

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.feed_forward import ACTIVATIONS
from quatrain.models.transformer.norms import make_norm


class LayerEmbedding(nn.Module):
    """Token ids (B, T) and their embeddings (B, T, hidden_size) to the inputs of all layers (B, T, L, C).

    C is layer_embedding_size. An input is the sum of the token's own vector and of a projection of its embedding, over
    the square root of 2.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.size = config.layer_embedding_size
        width = config.num_hidden_layers * self.size
        self.table = nn.Embedding(config.layer_vocab_size or config.vocab_size, width)
        self.projection = nn.Linear(config.hidden_size, width, bias=False)
        self.norm = make_norm(config, self.size)

    def forward(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """The inputs of all layers (B, T, L, C)."""
        own = (self.table(ids) * self.size**0.5).unflatten(-1, (-1, self.size))
        projected = (self.projection(embedded) * embedded.shape[-1] ** -0.5).unflatten(-1, (-1, self.size))
        return (self.norm(projected) + own) * 2**-0.5


class LayerInput(nn.Module):
    """norm(out(act(gate(x)) * input)): what a layer adds for its own embedding of the tokens."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.layer_embedding_size, bias=False)
        self.out = nn.Linear(config.layer_embedding_size, config.hidden_size, bias=False)
        self.norm = make_norm(config)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x (B, T, hidden_size) and inputs (B, T, C) to the shape of x."""
        added: Tensor = self.norm(self.out(self.activation(self.gate(x)) * inputs))
        return added
